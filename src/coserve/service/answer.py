"""What chat and plain completions have in common on their way: admitted, generated, sent whole or as a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Receive

from coserve.engine import Request
from coserve.service.admission import Passage
from coserve.service.generation import Batch, Generation, generating
from coserve.service.sse import EventStream
from coserve.service.usage import Usage
from coserve.service.whole import WholeReply

if TYPE_CHECKING:
    from coserve.service.service import Service


class Answer(ABC):
    """The completions of one HTTP request. `passage` and `usage` are kept up to date by `batches` and `sent`."""

    def __init__(
        self, service: Service, requests: Sequence[Request], passage: Passage, prompts: Sequence[Sequence[int]]
    ):
        self._service = service
        self._requests = requests
        self._passage = passage
        self._usage = Usage(prompts)

    @abstractmethod
    def whole(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        """Yields one JSON object."""

    @abstractmethod
    def events(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        """Yields server-sent events, all that is ready in one piece."""

    def response(self, stream: bool | None) -> Response:
        if stream:
            return EventStream(self.events, lambda: self._passage.headers)
        return WholeReply(self.whole, lambda: self._passage.headers)

    @asynccontextmanager
    async def generation(self, receive: Receive) -> AsyncIterator[Generation]:
        """Admitted, and running."""
        engine, mailbox = self._service.engine, self._service.mailbox
        param = self._passage.wish.param
        async with self._passage, generating(engine, mailbox, self._requests, receive, prompt=param) as generation:
            yield generation

    async def batches(self, generation: Generation) -> AsyncIterator[Batch]:
        """The generation's outputs, counted."""
        async for batch in generation.batches():
            for index, output in batch:
                self._usage.see(index, output)
            self._passage.generated(self._usage.completion)
            yield batch

    def sent(self) -> None:
        """All that was generated has been handed to the client's socket; had the client left, `batches` had said so."""
        self._passage.delivered()

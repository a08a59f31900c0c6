"""One HTTP request's choices while the engine makes them: submitted, heard and cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from starlette.types import Receive

from coserve.engine import Output, Request
from coserve.errors import ContextLengthExceeded, CoserveError, Unavailable
from coserve.service.errors import ClientGone
from coserve.service.mailbox import Mailbox
from coserve.service.tasks import watching

if TYPE_CHECKING:
    from coserve.engine import Engine

Batch = list[tuple[int, Output]]  # (which choice, what happened to it)


class Generation:
    """Requests that run in the engine on behalf of one client."""

    def __init__(self, engine: Engine, mailbox: Mailbox, requests: Sequence[Request]):
        self._engine = engine
        self._mailbox = mailbox
        self._requests = requests
        self._choice = {request.id: index for index, request in enumerate(requests)}
        self._running: set[str] = set()
        self._arrived: list[Output] = []
        self._news = asyncio.Event()
        self._gone = False

    def submit(self) -> None:
        """Hand all requests to the engine. Raises what `Engine.submit` raises; then none of them runs."""
        try:
            for request in self._requests:
                self._engine.submit(request, partial(self._mailbox.post, self._deliver))
                self._running.add(request.id)
        except BaseException:
            self.close()
            raise

    def _deliver(self, output: Output) -> None:
        self._arrived.append(output)
        self._news.set()

    def abandon(self) -> None:
        """The client has left: `batches` raises `ClientGone`."""
        self._gone = True
        self._news.set()

    def close(self) -> None:
        """Cancel whatever still runs."""
        for request_id in self._running:
            self._engine.cancel(request_id)
        self._running.clear()

    async def batches(self) -> AsyncIterator[Batch]:
        """All outputs that have arrived since the last batch, until each choice has finished.

        Raises: `ClientGone`; `CoserveError` when the engine gave up on a choice.
        """
        while self._running:
            await self._news.wait()
            self._news.clear()
            if self._gone:
                raise ClientGone
            arrived, self._arrived = self._arrived, []
            failure: CoserveError | None = None
            batch: Batch = []
            for output in arrived:
                if output.finish_reason is not None:
                    self._running.discard(output.request_id)
                if output.finish_reason in ("error", "cancelled"):
                    failure = failure or output.error or Unavailable("The server stopped this request.")
                else:
                    batch.append((self._choice[output.request_id], output))
            if batch:
                yield batch
            if failure is not None:
                raise failure


@asynccontextmanager
async def generating(
    engine: Engine, mailbox: Mailbox, requests: Sequence[Request], receive: Receive, *, prompt: str
) -> AsyncIterator[Generation]:
    """Run requests for as long as the client listens; on leaving the block nothing of them runs any more.

    `prompt` is the field of the HTTP request in which the prompt came.
    """
    generation = Generation(engine, mailbox, requests)
    try:
        generation.submit()
    except ContextLengthExceeded as error:
        error.param = prompt  # the engine cannot know by which name the client gave it
        raise
    with watching(receive, generation.abandon):
        try:
            yield generation
        finally:
            generation.close()

"""One request of a batch, answered as its route would: the same body, the same errors, the same reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.types import Message

from coserve.errors import CoserveError, InvalidRequest, Unavailable
from coserve.service.admission.refusals import QuotaExceeded, RateLimited, TooLarge
from coserve.service.answer import Answer
from coserve.service.auth.keys import Key
from coserve.service.bodies import parse_json
from coserve.service.chat import ChatBody, prepare_chat
from coserve.service.completions import CompletionBody, prepare_completion
from coserve.service.sampling import SamplingBody
from coserve.service.upstreams.answering import prepare_relay
from coserve.service.upstreams.relay import Relay

if TYPE_CHECKING:
    from coserve.service.service import Service

ENDPOINTS: dict[str, tuple[type[SamplingBody], Callable[..., Awaitable[Answer]]]] = {
    "/v1/chat/completions": (ChatBody, prepare_chat),
    "/v1/completions": (CompletionBody, prepare_completion),
}
BUSY_SECONDS = 1.0
LONGEST_PAUSE = 60.0
"""Seconds after which a limit is asked again, however long it says: someone may have raised it."""


async def ask(service: Service, key: Key, endpoint: str, body: bytes, *, batch_id: str, usage_id: str) -> bytes:
    """The reply's JSON. When it is there, it is on the bill too. Raises what the route raises."""
    model, prepare = ENDPOINTS[endpoint]
    said: Any = parse_json(body, model)
    answer: Answer | Relay
    if said.stream:
        raise InvalidRequest("'stream' is not possible in a batch.", param="stream")
    if said.model in service.engine.models() or said.model not in service.upstreams.models():
        answer = await prepare(service, key, said, batch_id=batch_id, usage_id=usage_id)
    else:
        answer = prepare_relay(service, key, said.asking(body), batch_id=batch_id, usage_id=usage_id)
    async with aclosing(answer.whole(_never)) as pieces:
        reply: bytes = await anext(pieces)
        await anext(pieces, None)
    return reply


async def _never() -> Message:
    """What a client says who always stays."""
    await asyncio.Event().wait()
    raise AssertionError


def pause(error: CoserveError) -> float | None:
    """Seconds after which the request is worth another try; None if it is none."""
    if isinstance(error, TooLarge | QuotaExceeded):
        return None
    if isinstance(error, RateLimited):
        seconds = float(error.headers.get("retry-after-ms", 1000 * LONGEST_PAUSE)) / 1000
        return min(max(seconds, 0.01), LONGEST_PAUSE)
    return BUSY_SECONDS if isinstance(error, Unavailable) else None

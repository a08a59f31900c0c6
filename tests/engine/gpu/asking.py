"""Requests that come while others decode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from coserve.engine import Engine, Output, Request


def one_after_the_other(
    engine: Engine, requests: Sequence[Request], tokens: int, on_first: Callable[[Output], None] = lambda output: None
) -> dict[str, list[Output]]:
    """Each comes when the one before has so many tokens; the outputs by the requests' ids."""
    answers: dict[str, list[Output]] = {}
    over, some = threading.Semaphore(0), threading.Semaphore(0)

    def take(output: Output) -> None:
        if not answers[output.request_id]:
            on_first(output)
        answers[output.request_id].append(output)
        (over if output.finish_reason else some).release()

    for request in requests:
        answers[request.id] = []
        engine.submit(request, take)
        assert all(some.acquire(timeout=120) for _ in range(tokens))
    assert all(over.acquire(timeout=120) for _ in requests)
    return answers

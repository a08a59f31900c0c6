"""A stand-in for the engine of a gateway: it serves no model of its own, and trains none. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from coserve.engine import EngineStats, Histogram, Output, Request
from coserve.errors import InvalidRequest, ModelNotFound
from coserve.service.jobs import Training

if TYPE_CHECKING:
    from coserve.engine import Engine

NAME = "gateway"
_NO_TIMES = Histogram((1.0,), (0, 0), 0.0)


class NoEngine:
    """What the service asks of an engine, answered by one that has nothing."""

    name = NAME
    device = "none"
    asleep = False
    max_context = 1 << 30  # tokens: its upstreams know their own
    generation_config = None

    @property
    def model_config(self) -> NoReturn:
        raise _no_training()

    def models(self) -> list[str]:
        return []

    def submit(self, request: Request, on_output: Callable[[Output], None]) -> NoReturn:
        raise ModelNotFound(f"The model {request.model!r} does not exist.", param="model")

    def cancel(self, request_id: str) -> None:
        pass

    def load_adapter(self, name: str, path: Path) -> NoReturn:
        raise _no_training()

    def unload_adapter(self, name: str) -> None:
        pass

    def stats(self) -> EngineStats:
        fields = EngineStats.__dataclass_fields__
        zeros: dict[str, Any] = {name: None if name.startswith("recent") else 0 for name in fields}
        return EngineStats(**{**zeros, "chip": "none", "ttft": _NO_TIMES, "itl": _NO_TIMES})

    def sleep(self) -> NoReturn:
        raise _no_sleep()

    def wake(self) -> NoReturn:
        raise _no_sleep()

    def shutdown(self) -> None:
        pass


def _no_training() -> InvalidRequest:
    return InvalidRequest("This server is a gateway: it has no engine, and trains no models.", param="model")


def _no_sleep() -> InvalidRequest:
    return InvalidRequest("This server is a gateway: it has no engine, and none that could sleep.")


def _refuse(*_: object) -> NoReturn:
    raise _no_training()


NO_TRAINING = Training(job=_refuse, read_examples=_refuse)


def no_engine() -> Engine:
    return NoEngine()  # type: ignore[return-value]  # the service needs no more of one

"""The engine's start in this process, part by part: `python -m benchmarks.start_worker MODEL WEIGHTS HOME`.

Run by `benchmarks.start`. Needs nothing but `coserve`, whose imports are part of what is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

PROMPT = "Say a few words, please."
SUM, REST = "sum", "the rest"
PARTS = {  # what the engine's start calls, one after the other
    "weights": ("coserve.models.decoder", "Decoder.from_directory"),
    "chip": ("coserve.engine.engine", "load_or_measure_chip"),
    "tokenizer": ("coserve.models.tokenizer", "Tokenizer.from_directory"),
    "warm-up": ("coserve.engine.engine", "Engine._warm_up"),
}
WITHIN = {SUM: ("coserve.models.quantized_file", "_sum_of_words")}  # a part of the weights


class Stopwatch:
    """Seconds in each of the calls above."""

    def __init__(self) -> None:
        self.parts = dict.fromkeys([*PARTS, *WITHIN], 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part, (module, name) in (PARTS | WITHIN).items():
                *holder, method = name.split(".")
                owner: Any = import_module(module)
                owner = getattr(owner, holder[0]) if holder else owner
                timed = self._timed(part, getattr(owner, method))
                bound = holder and isinstance(owner.__dict__[method], classmethod)
                stack.enter_context(patch.object(owner, method, staticmethod(timed) if bound else timed))
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.parts[part] += time.perf_counter() - begun

        return timed


def main(model: str, weights: str, home: str) -> None:
    """Print the seconds of the parts as soon as there is a token."""
    from coserve.engine import Engine, SamplingParams

    watch, begun = Stopwatch(), time.perf_counter()
    with watch.running():
        engine = Engine.from_pretrained(model, weights=weights, home=Path(home))
    loaded = time.perf_counter()
    rest = loaded - begun - sum(watch.parts[part] for part in PARTS)
    next(engine.generate(PROMPT, SamplingParams(max_tokens=1)))
    print(json.dumps(watch.parts | {REST: rest, "first token": time.perf_counter() - loaded}), flush=True)
    os._exit(0)  # what comes after the first token is not of interest


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A start of the engine in this process, then sleep and wake: what `benchmarks.gpu.start` runs."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.processes import report, task_of_parent
from benchmarks.start_worker import PARTS, Stopwatch


def main() -> None:
    told, begun = task_of_parent(), time.perf_counter()
    from coserve.engine import Engine, SamplingParams

    imported, watch = _imported(told["device"]), Stopwatch()
    with watch.running():
        engine = Engine.from_pretrained(told["directory"], device=told["device"])
    loaded = time.perf_counter()

    def tokens(number: int) -> list[int | None]:
        params = SamplingParams(max_tokens=number, temperature=0, ignore_eos=True)
        return [output.token_id for output in engine.generate([17, 18, 19], params)]

    tokens(1)
    answered = time.perf_counter()
    parts: dict[str, Any] = {"imports": imported - begun, "loaded": loaded - imported, "first token": answered - loaded}
    parts |= {f"of loaded: {part}": watch.parts[part] for part in PARTS}
    before, begun = tokens(8), time.perf_counter()
    engine.sleep()
    asleep = time.perf_counter()
    engine.wake()
    awake = time.perf_counter()
    tokens(1)
    first = time.perf_counter()
    parts |= {"sleep": asleep - begun, "wake": awake - asleep, "awake": first - asleep, "same": tokens(8) == before}
    engine.shutdown()
    report(**parts)


def _imported(device: str) -> float:
    """When the engine's module is there, which loads PyTorch, and the driver's context, which any program waits for."""
    import torch

    import coserve.engine.engine  # noqa: F401

    torch.zeros(1, device=device)
    return time.perf_counter()


if __name__ == "__main__":
    main()

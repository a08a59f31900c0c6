"""One engine, in the environment that it is installed in: a line of JSON for a line of JSON.

Run by `benchmarks.cpu_decode`, one process for each engine, so that the threads of one do not meet those of another.
The first line out says which engines are here, in which versions. In come

    {"do": "load", "engine": NAME, "setup": {...}}       -> {"weight_bytes": B, "token_bytes": B}
    {"do": "run", "prompts": [[...]], "output": TOKENS}  -> {"times": [[seconds]]}

`weight_bytes`: of the matrices that each step reads; `token_bytes`: of a token's keys and values. An answer with "why"
alone says what was raised. What engines print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from benchmarks.cpu_engines.setup import Setup


class CpuEngine(Protocol):
    weight_bytes: float
    token_bytes: float

    def token_times(self, prompts: Sequence[Sequence[int]], output: int) -> list[list[float]]: ...

    def close(self) -> None: ...


def coserve(setup: Setup) -> CpuEngine:
    from benchmarks.cpu_engines.ours import Coserve

    return Coserve(setup)


def llama_cpp_python(setup: Setup) -> CpuEngine:
    from benchmarks.cpu_engines.llama import LlamaCpp

    return LlamaCpp(setup)


def openvino_genai(setup: Setup) -> CpuEngine:
    from benchmarks.cpu_engines.genai import OpenVino

    return OpenVino(setup)


ENGINES: dict[str, Callable[[Setup], CpuEngine]] = {
    "coserve": coserve,
    "llama-cpp-python": llama_cpp_python,
    "openvino-genai": openvino_genai,
}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Desk:
    """Holds the engine, and answers."""

    engine: CpuEngine | None = None

    def answer(self, do: str, **job: Any) -> dict[str, Any]:
        try:
            return getattr(self, f"_{do}")(**job)
        except Exception as error:
            return {"why": f"{type(error).__name__}: {error}"}

    def _load(self, engine: str, setup: dict[str, Any]) -> dict[str, Any]:
        self.engine = ENGINES[engine](Setup(**setup))
        return {"weight_bytes": self.engine.weight_bytes, "token_bytes": self.engine.token_bytes}

    def _run(self, prompts: list[list[int]], output: int) -> dict[str, Any]:
        assert self.engine is not None
        return {"times": self.engine.token_times(prompts, output)}

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints
    print(json.dumps({name: installed(name) for name in ENGINES}), file=replies, flush=True)
    desk = Desk()
    for line in sys.stdin:
        print(json.dumps(desk.answer(**json.loads(line))), file=replies, flush=True)
    desk.close()


if __name__ == "__main__":
    main()

"""What the tables of `benchmarks.gpu` share: sizes, the engine to measure, the ceilings, and how long there is left."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.gpu.model import LLAMA_8B_CONFIG, Config, random_engine
from benchmarks.models import write_without_weights
from benchmarks.report import Row, progress
from coserve.engine import Engine, EngineConfig, Request, SamplingParams
from coserve.engine.config import Protect


@dataclass(frozen=True)
class Size:
    """A model and what it is given; the defaults are those of the aims."""

    config: Config
    streams: int = 64
    context: int = 1024
    output: int = 128
    prompts: int = 8
    prompt: int = 2048
    sequences: int = 4  # of an optimizer step
    tokens: int = 2048  # of a training sequence
    batch_tokens: int = 8192  # of an engine's step
    trace_scale: float = 1.0  # by which a real service's requests are shortened
    copied: int = 1 << 30  # bytes
    multiplied: int = 8192  # rows and columns
    short: tuple[int, ...] = (32, 128, 256, 512)  # tokens of short prompts


_TINY_CONFIG: Config = LLAMA_8B_CONFIG | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "rope_scaling": LLAMA_8B_CONFIG["rope_scaling"] | {"original_max_position_embeddings": 512},
    "vocab_size": 600,
}
SIZES = {
    "llama-8b": Size(LLAMA_8B_CONFIG),
    "tiny": Size(_TINY_CONFIG, 3, 48, 16, 2, 64, 2, 32, 256, 32.0, 1 << 22, 128, (4, 30)),
}


@dataclass(frozen=True)
class Ceilings:
    """Of this machine, measured in this run."""

    copy: float  # bytes/s, read and written, from device to device
    matmul: float  # FLOP/s of a large bfloat16 product

    def __str__(self) -> str:
        copy, matmul = f"{self.copy / 1e9:.0f} GB/s", f"{self.matmul / 1e12:.1f} TFLOP/s"
        return f"copy from device to device: {copy}; bfloat16 product: {matmul}"


@dataclass
class Bench:
    """One run of the command."""

    size: Size
    device: str
    quick: bool
    seed: int
    limit: float  # seconds from the start
    directory: Path  # of the model's configuration and tokenizer
    scratch: Path  # for a large checkpoint
    begun: float = field(default_factory=time.monotonic)
    _engine: tuple[tuple[str, Protect], Engine] | None = None

    def __post_init__(self) -> None:
        write_without_weights(self.directory, self.size.config)

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.limit - (time.monotonic() - self.begun)

    @property
    def seconds(self) -> float:
        """That a load without a natural end is kept up."""
        return 1.0 if self.device == "cpu" else 8.0 if self.quick else 15.0

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 2

    @cached_property
    def ceilings(self) -> Ceilings:
        measured = measure_ceilings(self.size, self.device)
        free_memory()
        return measured

    def engine(self, weights: str = "bf16", protect: Protect = EngineConfig.protect) -> Engine:
        """One at a time: it is kept until another one is asked for."""
        wanted = weights, protect
        if self._engine is None or self._engine[0] != wanted:
            self.close_engine()
            progress(f"an engine with random weights in {weights}")
            s = self.size
            config = EngineConfig(
                max_num_seqs=s.streams,
                max_batch_tokens=s.batch_tokens,
                max_waiting=1 << 20,
                kv_cache_tokens=2 * s.streams * s.context,
                train_tokens=s.sequences * s.tokens,
                protect=protect,
            )
            self._engine = wanted, random_engine(self.directory, weights, self.device, config)
        return self._engine[1]

    def close_engine(self) -> None:
        if self._engine is not None:
            self._engine[1].shutdown()
            self._engine = None
        free_memory()

    def requests(self, number: int, prompt: int, output: int) -> list[Request]:
        """Random prompts, to be sampled from at temperature 1."""
        rng, vocabulary = random.Random(self.seed), self.size.config["vocab_size"]
        params = SamplingParams(max_tokens=output, temperature=1.0, ignore_eos=True)
        return [
            Request(tuple(rng.randrange(16, vocabulary) for _ in range(prompt)), params, "random")
            for _ in range(number)
        ]


def measure_ceilings(size: Size, device: str) -> Ceilings:
    source, target = (torch.zeros(size.copied, dtype=torch.uint8, device=device) for _ in range(2))
    a, b = (torch.randn(size.multiplied, size.multiplied, dtype=torch.bfloat16, device=device) for _ in range(2))
    copying = seconds_of(lambda: target.copy_(source), device)
    multiplying = seconds_of(lambda: a @ b, device)
    return Ceilings(2 * size.copied / copying, 2 * size.multiplied**3 / multiplying)


def seconds_of(run: Callable[[], object], device: str, times: int = 20) -> float:
    """Seconds of one run on a warm device: the median of five rounds of some."""
    run()
    return statistics.median(_round(run, device, times) / times for _ in range(5))


def _round(run: Callable[[], object], device: str, times: int) -> float:
    if device == "cpu":
        begun = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - begun
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def aim(value: float | None, *, at_least: float | None = None, at_most: float | None = None) -> Row:
    """What was wanted of a figure, and whether it is met."""
    if at_least is not None:
        return {"aim": f">= {at_least:g}", "met": _word(value is not None and value >= at_least)}
    return {"aim": f"<= {at_most:g}", "met": _word(value is not None and at_most is not None and value <= at_most)}


def _word(met: bool) -> str:
    return "yes" if met else "**no**"

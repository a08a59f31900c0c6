"""`operator_times.csv`: single operators of a layer, as profiled alone on one of `tp` chips."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.planner.case import Case, Row
from coserve.chips import ChipSpec, find_chip
from coserve.planner.constants import Constants
from coserve.planner.replica import matmul_rate
from coserve.planner.shape import load_shape

_BYTES = 2  # of an element: the profiles are in 16 bits


@dataclass(frozen=True)
class _Gpu:
    """A chip, and what the catalogue does not hold of it, as its maker states."""

    name: str
    cores: int  # streaming multiprocessors
    threads: int  # that a core keeps running at once
    clock: float  # cycles a second


_GPUS = {
    "a100": _Gpu("A100 SXM 80GB", 108, 2048, 1.41e9),
    "h100": _Gpu("H100 SXM", 132, 2048, 1.98e9),
    "a40": _Gpu("A40", 84, 1536, 1.74e9),
}


@dataclass(frozen=True)
class _Operator:
    bytes: float  # read and written
    flops: float = 0.0
    wait: float = 0.0  # seconds for loads that follow one another in an elementwise one, if each took a cycle

    def seconds(self, chip: ChipSpec, constants: Constants) -> float:
        """Elementwise operators of engines load an element a thread at a time, so that waiting for loads takes as long
        as moving bytes does; products hide it."""
        memory = self.bytes / (chip.bandwidth * constants.operator_memory)
        if not self.flops:
            return constants.small_kernel + math.hypot(memory, self.wait * constants.load_cycles)
        rate = matmul_rate(chip, "bfloat16", constants) * constants.operator_arithmetic
        return constants.kernel + max(memory, self.flops / rate)


def case(row: Row) -> Case:
    gpu = _GPUS[row["chip"]]
    chip, operators = find_chip(gpu.name), _operators(row, gpu)
    measured = {name: float(row[name]) for name in operators if row[name]}

    def predict(constants: Constants) -> dict[str, float]:
        return {name: 1e3 * operators[name].seconds(chip, constants) for name in measured}

    return Case(
        table="operator_times",
        row=row,
        measured=measured,
        chip=chip.name,
        model=load_shape(row["model"]).name,
        predict=predict,
        fit=True,
    )


def _operators(row: Row, gpu: _Gpu) -> dict[str, _Operator]:
    """By the column of their times."""
    tp, tokens, hidden = int(row["tp"]), int(row["tokens"]), int(row["hidden"])
    heads, kv_heads = int(row["heads"]), int(row["kv_heads"])
    queries, ffn = hidden // tp, int(row["ffn"]) // tp
    kv = max(kv_heads // tp, 1) * (hidden // heads)  # columns of the keys, and of the values
    up = ffn * (2 if row["gated"] == "True" else 1)
    turned = queries + kv  # a thread turns a pair of them
    norm = _elementwise(gpu, 2 * tokens * hidden, _row_loads(gpu, tokens, hidden))
    return {
        "emb_ms": _elementwise(gpu, 2 * tokens * hidden, _lookup_loads(gpu, tokens, hidden)),
        "input_layernorm_ms": norm,
        "attn_pre_proj_ms": _product(tokens, hidden, queries + 2 * kv),
        "attn_rope_ms": _elementwise(gpu, 2 * tokens * turned, _row_loads(gpu, tokens, turned // 2, 512)),
        "attn_post_proj_ms": _product(tokens, queries, hidden),
        "post_attention_layernorm_ms": norm,
        "mlp_up_proj_ms": _product(tokens, hidden, up),
        "mlp_act_ms": _elementwise(gpu, tokens * (up + ffn), _row_loads(gpu, tokens, ffn)),
        "mlp_down_proj_ms": _product(tokens, ffn, hidden),
        "add_ms": _elementwise(gpu, 3 * tokens * hidden, 0),
    }


def _product(tokens: int, rows: int, columns: int) -> _Operator:
    """Activations times a matrix."""
    return _Operator(_BYTES * (rows * columns + tokens * (rows + columns)), 2.0 * tokens * rows * columns)


def _elementwise(gpu: _Gpu, elements: int, loads: int) -> _Operator:
    return _Operator(_BYTES * elements, wait=loads / gpu.clock)


def _row_loads(gpu: _Gpu, tokens: int, width: int, block: int = 1024) -> int:
    """Loads after one another where a block of at most so many threads goes through each token's row (vLLM's norms,
    rotation and activation)."""
    threads = min(block, width)
    return math.ceil(tokens / (gpu.cores * (gpu.threads // threads))) * math.ceil(width / threads)


def _lookup_loads(gpu: _Gpu, tokens: int, width: int) -> int:
    """The same of PyTorch's `index_select`: 16 rows at most go one by one, more are spread over 1,024 threads a core;
    an element's load follows that of its row's index."""
    return 2 * (tokens if tokens <= 16 else math.ceil(tokens * width / (1024 * gpu.cores)))

"""`operator_times.csv`: single operators of a layer, as profiled alone on one of `tp` chips."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.planner.case import Case, Row
from coserve.chips import ChipSpec, find_chip
from coserve.planner.constants import Constants
from coserve.planner.replica import matmul_rate
from coserve.planner.shape import load_shape

_CHIPS = {"a100": "A100 SXM 80GB", "h100": "H100 SXM", "a40": "A40"}
_BYTES = 2  # of an element: the profiles are in 16 bits


@dataclass(frozen=True)
class _Operator:
    bytes: float  # read and written
    flops: float = 0.0

    def seconds(self, chip: ChipSpec, constants: Constants) -> float:
        """An elementwise operator takes as long as its bytes, or as its launch; a product has its launch besides."""
        if not self.flops:
            return max(self.bytes / (chip.bandwidth * constants.elementwise), constants.small_kernel)
        memory = self.bytes / (chip.bandwidth * constants.operator_memory)
        rate = matmul_rate(chip, "bfloat16", constants) * constants.operator_arithmetic
        return max(memory, self.flops / rate) + constants.kernel


def case(row: Row) -> Case:
    chip, operators = find_chip(_CHIPS[row["chip"]]), _operators(row)
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


def _operators(row: Row) -> dict[str, _Operator]:
    """By the column of their times."""
    tp, tokens, hidden = int(row["tp"]), int(row["tokens"]), int(row["hidden"])
    heads, kv_heads = int(row["heads"]), int(row["kv_heads"])
    queries, ffn = hidden // tp, int(row["ffn"]) // tp
    kv = max(kv_heads // tp, 1) * (hidden // heads)  # columns of the keys, and of the values
    up = ffn * (2 if row["gated"] == "True" else 1)
    return {
        "emb_ms": _elementwise(2 * tokens * hidden),
        "input_layernorm_ms": _elementwise(2 * tokens * hidden),
        "attn_pre_proj_ms": _product(tokens, hidden, queries + 2 * kv),
        "attn_rope_ms": _elementwise(2 * tokens * (queries + kv)),
        "attn_post_proj_ms": _product(tokens, queries, hidden),
        "post_attention_layernorm_ms": _elementwise(2 * tokens * hidden),
        "mlp_up_proj_ms": _product(tokens, hidden, up),
        "mlp_act_ms": _elementwise(tokens * (up + ffn)),
        "mlp_down_proj_ms": _product(tokens, ffn, hidden),
        "add_ms": _elementwise(3 * tokens * hidden),
    }


def _product(tokens: int, rows: int, columns: int) -> _Operator:
    """Activations times a matrix."""
    return _Operator(_BYTES * (rows * columns + tokens * (rows + columns)), 2.0 * tokens * rows * columns)


def _elementwise(elements: int) -> _Operator:
    """Moves elements, whatever it does with them."""
    return _Operator(_BYTES * elements)

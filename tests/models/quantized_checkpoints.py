"""Checkpoints as others quantise them: packers by the formats' public definitions, and what is packed.

Each gives a module's tensors by their last names, and its values in float64 [out, in].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ: nibble i of a word is column 8 * word + order[i]


def words(integers: np.ndarray, bits: int) -> np.ndarray:
    """Consecutive integers along the last axis, the first one lowest, as int32."""
    per = 32 // bits
    grouped = integers.astype(np.uint32).reshape(*integers.shape[:-1], -1, per)
    shifts = (np.arange(per) * bits).astype(np.uint32)
    return np.bitwise_or.reduce(grouped << shifts, axis=-1).astype(np.uint32).view(np.int32)


def draw(rows: int, columns: int, bits: int, group: int, seed: int, symmetric: bool):
    random = np.random.default_rng(seed)
    q = random.integers(0, 1 << bits, (rows, columns))
    scales = (random.random((rows, columns // group)) * 0.02 + 0.001).astype(np.float16)
    middle = 1 << (bits - 1)
    zeros = np.full(scales.shape, middle) if symmetric else random.integers(1, 1 << bits, scales.shape)
    return q, scales, zeros


def values(q, scales, zeros, group_of_column) -> Tensor:
    return torch.from_numpy((q - zeros[:, group_of_column]) * scales.astype(np.float64)[:, group_of_column])


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def gptq(rows, columns, *, bits=4, group=32, seed=0, symmetric=True, version=1, order=False):
    """AutoGPTQ's QuantLinear.pack. `order`: groups by the order of activations."""
    group = columns if group == -1 else group
    q, scales, zeros = draw(rows, columns, bits, group, seed, symmetric)
    index = np.arange(columns) // group
    if order:
        index = np.random.default_rng(seed + 1).permutation(index)
    stored = zeros - 1 if version == 1 else zeros
    tensors = {
        "qweight": tensor(words(q, bits).T),
        "qzeros": tensor(words(stored.T, bits)),
        "scales": tensor(scales.T),
        "g_idx": tensor(index.astype(np.int32)),
    }
    return tensors, values(q, scales, zeros, index)


def awq(rows, columns, *, group=32, seed=0, symmetric=False):
    """AutoAWQ's WQLinear_GEMM.from_linear."""
    q, scales, zeros = draw(rows, columns, 4, group, seed, symmetric)

    def packed(integers: np.ndarray) -> np.ndarray:
        """[n, out] -> int32 [n, out / 8]"""
        reordered = integers.reshape(len(integers), -1, 8)[..., list(AWQ_ORDER)]
        return words(reordered.reshape(len(integers), -1), 4)

    tensors = {"qweight": tensor(packed(q.T)), "qzeros": tensor(packed(zeros.T)), "scales": tensor(scales.T)}
    return tensors, values(q, scales, zeros, np.arange(columns) // group)


def compressed(rows, columns, *, bits=4, group=32, seed=0, form="pack-quantized"):
    """compressed-tensors' pack_to_int32, or plain int8."""
    q, scales, zeros = draw(rows, columns, bits, columns if group == -1 else group, seed, True)
    dense = values(q, scales, zeros, np.arange(columns) // (columns if group == -1 else group))
    if form == "int-quantized":
        return {"weight": tensor((q - 128).astype(np.int8)), "weight_scale": tensor(scales)}, dense
    tensors = {"weight_packed": tensor(words(q, bits)), "weight_scale": tensor(scales)}
    return {**tensors, "weight_shape": torch.tensor([rows, columns])}, dense

"""What Triton's interpreter (3.7) gets wrong about floats, put right with PyTorch's own conversions.

It holds bfloat16 and 8-bit floats as integers, multiplies those in `tl.dot`, cuts off where hardware rounds to the
nearest, and makes numbers of NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

FLOATS = {
    tl.float64: torch.float64,
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}


def put_right() -> None:
    builder = interpreter.InterpreterBuilder
    builder.cast_impl = _cast
    builder.create_fp_to_fp = lambda self, source, wanted, rounding: _cast(self, source, wanted)
    builder.create_dot = _dot


def _cast(builder: Any, source: Any, wanted: Any) -> Any:
    have, want = source.dtype.scalar, wanted.scalar
    if source.data.dtype == np.bool_:  # of a comparison; the interpreter calls it what was compared
        have = tl.int1
    if have not in FLOATS and want not in FLOATS:
        values = source.data.astype(interpreter._get_np_dtype(wanted))
    else:
        values = _numpy(_tensor(source.data, have).to(FLOATS.get(want) or _integers(want)))
        values = values.astype(interpreter._get_np_dtype(wanted)) if want not in FLOATS else values
    return interpreter.TensorHandle(values, want)


def _dot(builder: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    """Integers in integers; floats in float64, then rounded, so that no row knows how many there are."""
    if a.dtype.scalar not in FLOATS:
        product = np.matmul(a.data, b.data, dtype=d.data.dtype)
    else:
        product = (_tensor(a.data, a.dtype.scalar).double() @ _tensor(b.data, b.dtype.scalar).double()).float().numpy()
    return interpreter.TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


def _tensor(data: np.ndarray, dtype: Any) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(data))
    return tensor.view(FLOATS[dtype]).reshape(data.shape) if dtype in FLOATS else tensor


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Formats that NumPy lacks as unsigned integers, as the interpreter keeps them."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    if tensor.itemsize == 1 and tensor.is_floating_point():
        return tensor.view(torch.uint8).numpy()
    return tensor.numpy()


def _integers(dtype: Any) -> torch.dtype:
    return torch.int64 if dtype.primitive_bitwidth == 64 else torch.int32

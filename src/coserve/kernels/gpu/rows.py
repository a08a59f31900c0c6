"""Norms and activation, and their gradients.

Each row is one program's (a part of it in the activation): what a row becomes depends on nothing else. Sums are in
float32; where the reference rounds to the rows' format, so do these.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu.target import await_earlier, early, let_next

_COLUMNS = 1024  # of the activation, for one program


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., n], weight [n] -> [..., n] (Zhang & Sennrich, 2019)."""
    x, out, n = x.contiguous(), x.new_empty(x.shape), x.shape[-1]
    _norm[(x.numel() // n,)](x, weight, out, n, eps, **_whole_row(n), **early())
    return out


def rms_norm_gradient(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The gradient of x [..., n] from that of `rms_norm`'s result."""
    x, grad, dx = x.contiguous(), grad.contiguous(), x.new_empty(x.shape)
    n = x.shape[-1]
    _norm_gradient[(x.numel() // n,)](x, weight, grad, dx, n, eps, **_whole_row(n))
    return dx


def silu_and_mul(x: Tensor) -> Tensor:
    """x [rows, 2n] -> [rows, n]: silu of the first half times the second."""
    x = x.contiguous()
    rows, n = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, n)
    _silu[(rows, triton.cdiv(n, _COLUMNS))](x, out, n, COLUMNS=_COLUMNS, **early())
    return out


def silu_and_mul_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x [rows, 2n] from that of `silu_and_mul`'s result."""
    x, grad, dx = x.contiguous(), grad.contiguous(), x.new_empty(x.shape)
    rows, n = grad.shape
    _silu_gradient[(rows, triton.cdiv(n, _COLUMNS))](x, grad, dx, n, COLUMNS=_COLUMNS)
    return dx


def _whole_row(n: int) -> dict[str, int]:
    """A row in one piece, and threads to match."""
    columns = triton.next_power_of_2(n)
    return {"COLUMNS": columns, "num_warps": min(16, max(1, columns // 512))}


@triton.jit
def _norm(x, weight, out, n, eps, COLUMNS: tl.constexpr, EARLY: tl.constexpr):
    """Grid: rows."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    mask = column < n
    at = row * n + column
    factor = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    await_earlier(EARLY)
    values = tl.load(x + at, mask=mask, other=0.0)
    wide = values.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(wide * wide, 0) / n + eps)
    let_next(EARLY)
    tl.store(out + at, ((wide * scale).to(values.dtype).to(tl.float32) * factor).to(values.dtype), mask=mask)


@triton.jit
def _norm_gradient(x, weight, grad, dx, n, eps, COLUMNS: tl.constexpr):
    """With r = 1 / rms and u = grad * weight:  dx = r * (u - x * r^2 * mean(u * x)). Grid: rows."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    mask = column < n
    at = row * n + column
    values = tl.load(x + at, mask=mask, other=0.0)
    wide = values.to(tl.float32)
    u = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    u *= tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    r = 1 / tl.sqrt(tl.sum(wide * wide, 0) / n + eps)
    along = r * r * tl.sum(u * wide, 0) / n
    tl.store(dx + at, (r * (u - wide * along)).to(values.dtype), mask=mask)


@triton.jit
def _silu(x, out, n, COLUMNS: tl.constexpr, EARLY: tl.constexpr):
    """Grid: rows, parts of a row."""
    await_earlier(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < n
    gate = tl.load(x + row * 2 * n + column, mask=mask, other=0.0)
    up = tl.load(x + row * 2 * n + n + column, mask=mask, other=0.0)
    tl.store(out + row * n + column, activated(gate, up, gate.dtype).to(gate.dtype), mask=mask)


@triton.jit
def activated(gate, up, dtype: tl.constexpr):
    """silu(gate) * up, not yet rounded; what the reference rounds to `dtype` on the way is."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32) * up


@triton.jit
def _silu_gradient(x, grad, dx, n, COLUMNS: tl.constexpr):
    """With s the sigmoid of gate:  silu' = s * (1 + gate * (1 - s)). Grid: rows, parts of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < n
    at = row * 2 * n + column
    stored = tl.load(x + at, mask=mask, other=0.0)
    gate = stored.to(tl.float32)
    up = tl.load(x + at + n, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + row * n + column, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    tl.store(dx + at, (g * up * s * (1 + gate * (1 - s))).to(stored.dtype), mask=mask)
    tl.store(dx + at + n, (g * gate * s).to(stored.dtype), mask=mask)

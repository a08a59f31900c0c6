"""A decoder layer in one native call: its operations, one after the other, without Python in between.

A decode step of a small model is some hundred operations, and the way into one takes longer than the small ones. The
call takes what `native/layer.cpp` calls a layer, made once of the addresses of its tensors, and what the batch has.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import byref, c_double, c_float, c_int, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve.kernels.gpu import on_gpu
from coserve.kernels.linear import Weight
from coserve.kernels.native import kernel, library, multiplies_bfloat16, pointer
from coserve.kernels.paged import BLOCK_SIZE, TILE_ROWS, KVCache, PagedLayout
from coserve.kernels.quantized import QuantizedWeight

PARTS = ("products", "attention", "small operations")  # that a layer's time goes to


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("data", "bias", "scales", "mins")),
        *((name, c_int) for name in ("bits", "group", "columns", "depth")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, c_int) for name in ("heads", "kv_heads", "dim", "window")),
        *((name, c_float) for name in ("eps", "scale")),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("positions", "slots", "tables", "tiles", "cos", "sin", "keys", "values")),
        *((name, c_int) for name in ("count", "tile_count", "rows_of_tile")),
    ]


@dataclass(frozen=True)
class LayerTensors:
    """A layer's matrices and biases (qkv, o, gate_up, down) and norms (input, post; of a head's queries and keys)."""

    matrices: Sequence[tuple[Weight, Tensor | None]]
    norms: Sequence[Tensor | None]

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether there are native products with all of the matrices, for rows of this format."""
        vectors = [t for t in (*self.norms, *(bias for _, bias in self.matrices)) if t is not None]
        weights = [weight for weight, _ in self.matrices]
        return all(_native(weight, dtype) for weight in weights) and all(_plain(t, (dtype,)) for t in vectors)


def _native(weight: Weight, dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return multiplies_bfloat16() and _plain(weight, (dtype,))
    return isinstance(weight, QuantizedWeight) or _plain(weight, (torch.float32, torch.bfloat16))


def _plain(tensor: Weight, dtypes: Sequence[torch.dtype]) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype in dtypes and tensor.is_contiguous() and not on_gpu(tensor)


class NativeLayer:
    """Holds the addresses of a layer's tensors, which stay where they are. Adapters are not for it."""

    def __init__(
        self, tensors: LayerTensors, heads: int, kv_heads: int, dim: int, window: int | None, eps: float, index: int
    ):
        """The tensors fit. `index`: of the layer in the cache."""
        self._tensors, self._index = tensors, index
        matrices = (_matrix(*matrix) for matrix in tensors.matrices)
        norms = (pointer(norm) for norm in tensors.norms)
        self._layer = _Layer(*matrices, *norms, heads, kv_heads, dim, window or 0, eps, dim**-0.5)
        norm = tensors.norms[0]
        assert norm is not None
        self._run, lib = kernel("layer", norm.dtype), library()
        assert lib is not None
        self._room = lib.coserve_layer_room(byref(self._layer))

    @staticmethod
    def takes(tensors: LayerTensors, dtype: torch.dtype, dim: int) -> bool:
        return kernel("layer", dtype) is not None and dim % BLOCK_SIZE == 0 and tensors.fits(dtype)

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], layout: PagedLayout, cache: KVCache) -> Tensor:
        """x [rows, hidden] -> the layer's output, likewise; writes keys and values into the cache. No gradients."""
        places = (layout.positions, layout.slots, layout.tables, layout.tiles, *rope)
        ours = (cache.keys[self._index], cache.values[self._index])
        addresses = (t.data_ptr() for t in (*places, *ours))
        rows = _Rows(*addresses, x.shape[0], layout.tiles.shape[0], TILE_ROWS)
        x = x.contiguous()
        out, work = torch.empty_like(x), x.new_empty(x.shape[0] * self._room)
        self._run(byref(self._layer), byref(rows), pointer(x), pointer(out), pointer(work))
        return out


def _matrix(weight: Weight, bias: Tensor | None) -> _Matrix:
    rows, columns = weight.shape
    if isinstance(weight, QuantizedWeight):
        parts = (pointer(t) for t in (weight.data, bias, weight.scales, weight.mins))
        return _Matrix(*parts, weight.bits, weight.group, rows, columns)
    assert isinstance(weight, Tensor)
    return _Matrix(pointer(weight), pointer(bias), None, None, 8 * weight.itemsize, columns, rows, columns)


@functools.cache
def _seconds() -> Sequence[float]:
    lib = library()
    if lib is None:
        return [0.0] * len(PARTS)
    lib.coserve_layer_seconds.restype = ctypes.POINTER(c_double * len(PARTS))
    return lib.coserve_layer_seconds().contents


def seconds_by_part() -> dict[str, float]:
    """What all layers took in native calls since the library was loaded, by `PARTS`."""
    return dict(zip(PARTS, _seconds(), strict=True))

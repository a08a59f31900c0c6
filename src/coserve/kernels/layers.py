"""All of a decoder's layers in one native call: their operations, one after the other, without Python in between.

A decode step of a small model is some hundred operations, and the way into one takes longer than the small ones: the
weights that passed by have driven Python out of the caches. The call takes what `native/layers.cpp` calls layers, made
once of the addresses of their tensors, and where a batch's rows stand.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from ctypes import byref, c_double, c_float, c_int, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve.kernels.gpu import on_gpu
from coserve.kernels.linear import Weight
from coserve.kernels.native import kernel, library, multiplies_bfloat16, pointer
from coserve.kernels.paged import BLOCK_SIZE, TILE_ROWS, KVCache, PagedLayout
from coserve.kernels.quantized import QuantizedWeight

PARTS = ("products", "attention", "small operations")  # that the layers' time goes to


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
        *((name, c_void_p) for name in ("positions", "slots", "tables", "tiles", "cos", "sin")),
        *((name, c_int) for name in ("count", "tile_count", "rows_of_tile")),
    ]


@dataclass(frozen=True)
class LayerTensors:
    """What one layer computes with."""

    matrices: Sequence[tuple[Weight, Tensor | None]]  # with their biases: qkv, o, gate_up, down
    norms: Sequence[Tensor | None]  # input, post; of a head's queries and keys
    window: int | None  # keys that a query sees; None = all

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


class NativeLayers:
    """Holds the addresses of the layers' tensors: to be made again if their memory moves. Adapters are not for it."""

    @classmethod
    def of(
        cls, layers: Sequence[LayerTensors], dtype: torch.dtype, heads: int, kv_heads: int, dim: int, eps: float
    ) -> NativeLayers | None:
        """None where there are no kernels for them."""
        fit = kernel("layers", dtype) is not None and dim % BLOCK_SIZE == 0 and all(t.fits(dtype) for t in layers)
        return cls(layers, dtype, heads, kv_heads, dim, eps) if fit else None

    def __init__(
        self, layers: Sequence[LayerTensors], dtype: torch.dtype, heads: int, kv_heads: int, dim: int, eps: float
    ):
        self._tensors, self._run, lib = layers, kernel("layers", dtype), library()
        assert lib is not None
        self._layers = (_Layer * len(layers))(
            *(
                _Layer(
                    *(_matrix(*matrix) for matrix in layer.matrices),
                    *(pointer(norm) for norm in layer.norms),
                    *(heads, kv_heads, dim, layer.window or 0, eps, dim**-0.5),
                )
                for layer in layers
            )
        )
        self._room = lib.coserve_layers_room(self._layers, len(layers))

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], layout: PagedLayout, cache: KVCache) -> Tensor:
        """x [rows, hidden] -> the last layer's output, likewise, without gradients; fills the cache."""
        count, (cos, sin) = x.shape[0], rope
        places = (layout.positions, layout.slots, layout.tables, layout.tiles, cos, sin)
        rows = _Rows(*(t.data_ptr() for t in places), count, layout.tiles.shape[0], TILE_ROWS)
        out = x.clone(memory_format=torch.contiguous_format)
        work = x.new_empty(count * self._room)
        layers = len(self._layers)
        keys, values = _addresses(cache.keys), _addresses(cache.values)
        self._run(self._layers, layers, byref(rows), keys, values, pointer(out), pointer(work))
        return out


def _addresses(tensors: Iterable[Tensor]) -> ctypes.Array[c_void_p]:
    addresses = [t.data_ptr() for t in tensors]
    return (c_void_p * len(addresses))(*addresses)


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
    lib.coserve_layers_seconds.restype = ctypes.POINTER(c_double * len(PARTS))
    return lib.coserve_layers_seconds().contents


def seconds_by_part() -> dict[str, float]:
    """What all layers took in native calls since the library was loaded, by `PARTS`."""
    return dict(zip(PARTS, _seconds(), strict=True))

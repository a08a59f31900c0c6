"""Calls one kernel a few times on made-up numbers, without PyTorch: what `kernel_instructions` runs under Valgrind.

python kernel_call.py LIBRARY WEIGHTS ROWS COLUMNS DEPTH CALLS
"""

import ctypes
import sys
from collections.abc import Callable

GROUP = 64  # elements of a row of 4-bit weights that share a scale


def main(library: str, weights: str, rows: int, columns: int, depth: int, calls: int) -> None:
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)  # PyTorch brings one along
    product = PRODUCTS[weights](ctypes.CDLL(library), weights, rows, columns, depth)
    for _ in range(calls):
        product()


def of_floats(lib: ctypes.CDLL, weights: str, rows: int, columns: int, depth: int) -> Callable[[], object]:
    run, size = (lib.coserve_linear_f32, 4) if weights == "float32" else (lib.coserve_linear_bf16, 2)
    x, w, y = _numbers(rows * depth), _bytes(columns * depth * size), _numbers(rows * columns)
    return lambda: run(x, w, None, None, y, rows, columns, depth)


def of_integers(lib: ctypes.CDLL, weights: str, rows: int, columns: int, depth: int) -> Callable[[], object]:
    bits = int(weights[3:])
    group = depth if bits == 8 else GROUP
    x, w, y = _numbers(rows * depth), _bytes(columns * depth * bits // 8), _numbers(rows * columns)
    scales = _bytes(columns * (depth // group) * 2)
    return lambda: lib.coserve_linear_quantized(x, w, scales, None, None, None, y, bits, group, rows, columns, depth)


PRODUCTS = {"float32": of_floats, "bfloat16": of_floats, "int8": of_integers, "int4": of_integers}


def _numbers(count: int) -> ctypes.Array:
    return (ctypes.c_float * count)(*(float(i % 7 - 3) for i in range(count)))


def _bytes(count: int) -> ctypes.Array:
    return (ctypes.c_uint8 * count)()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:7]))

"""Number formats of weights and KV cache: the bytes of an element, its share of the scales included."""

from __future__ import annotations

from functools import cache

from coserve.errors import InvalidRequest

ELEMENT_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float8": 1.0,
    "int8": 1.0,
    "float4": 4.5 / 8,  # NVFP4: an 8-bit scale for 16 elements
    "mxfp4": 4.25 / 8,  # OCP MX: an 8-bit scale for 32 elements
    "int4": 4.25 / 8,  # a 16-bit scale and a zero point for some 64 to 128 elements
}
_SAME = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "bfloat16",  # the same bytes and, on all chips here, the same FLOP/s
    "float16": "bfloat16",
    "fp8": "float8",
    "mxfp8": "float8",
    "fp8_block": "float8",
    "fp4": "float4",
    "nvfp4": "float4",
    "w4a16_mxfp4": "mxfp4",
    "int4_wo": "int4",
    "int8_wo": "int8",
    "sq": "int8",
}


def number_format(name: str) -> str:
    """The format's name in `ELEMENT_BYTES`. Raises `InvalidRequest` for an unknown one."""
    plain = name.strip().lower()
    plain = _SAME.get(plain, plain)
    if plain not in ELEMENT_BYTES:
        raise InvalidRequest(f"unknown number format {name!r}; known are {', '.join(ELEMENT_BYTES)}", param="format")
    return plain


@cache
def element_bytes(name: str) -> float:
    """Bytes of an element. Raises `InvalidRequest` for an unknown format."""
    return ELEMENT_BYTES[number_format(name)]

"""Integers and 8-bit floats, packed as `QuantizedRows` has them, to bfloat16: exact, in registers.

NVIDIA's conversions take several instructions an element. These take two elements at once, neighbours of one slice,
by their bits. A bfloat16 between 128 and 256 has the bits 0x4300 + (value - 128): that makes an integer of 7 bits a
float with a mask. The way of others, and of the interpreter, is Triton's own conversions.
"""

from __future__ import annotations

import triton
import triton.language as tl

# $1: two units. $2: how far to shift (twice, since two elements come at once).
_NIBBLES = tl.constexpr("""{
    .reg .b32 q, one, less;
    shr.u32 q, $1, $2;
    lop3.b32 q, q, 0x000f000f, 0x43004300, 0xEA;  // 128 + q
    mov.b32 one, 0x3f803f80;
    mov.b32 less, 0xc300c300;
    fma.rn.bf16x2 $0, q, one, less;
}""")
_SIGNED_NIBBLES = tl.constexpr(_NIBBLES.value.replace("0xc300c300", "0xc308c308"))  # less 136
_BYTES = tl.constexpr("""{
    .reg .b32 q, low, sign, minus;
    shr.u32 q, $1, $2;
    lop3.b32 low, q, 0x007f007f, 0x43004300, 0xEA;  // 128 + the lower 7 bits
    lop3.b32 sign, q, 0x00800080, 0x43004300, 0xEA;  // 256 if negative, else 128
    mov.b32 minus, 0xbf80bf80;
    fma.rn.bf16x2 $0, sign, minus, low;
}""")
# Sign, exponent and mantissa to where bfloat16 has them: the value times 2^-120. NaN, which no matrix has, becomes 480.
_FLOATS = tl.constexpr("""{
    .reg .b32 q, rest, up, zero;
    shl.b32 q, $1, $2;
    shr.u32 rest, q, 4;
    and.b32 rest, rest, 0x07f007f0;
    lop3.b32 q, q, 0x80008000, rest, 0xEA;
    mov.b32 up, 0x7b807b80;
    mov.b32 zero, 0x80008000;
    fma.rn.bf16x2 $0, q, up, zero;
}""")
_OPERANDS = tl.constexpr("=r,r,r,r")


@triton.jit
def widened(units, SLICE: tl.constexpr, FORMAT: tl.constexpr, SIGNED: tl.constexpr, BY_BITS: tl.constexpr):
    """The elements of a slice (0, 1, ...), bfloat16, from units int16, of a FORMAT "int8", "int4" or "float8".

    SIGNED: 4-bit integers have 8 added to them. BY_BITS: the GPU takes NVIDIA's instructions.
    """
    if BY_BITS:
        if FORMAT == "int4":
            return _two_at_once(_SIGNED_NIBBLES if SIGNED else _NIBBLES, units, 4 * SLICE)
        elif FORMAT == "int8":
            return _two_at_once(_BYTES, units, 8 * SLICE)
        else:
            return _two_at_once(_FLOATS, units, 8 - 8 * SLICE)
    elif FORMAT == "int4":
        q = ((units >> (4 * SLICE)) & 15).to(tl.int8)
        return (q - 8 if SIGNED else q).to(tl.bfloat16)
    else:
        byte = (units >> (8 * SLICE)).to(tl.int8)
        return byte.to(tl.bfloat16) if FORMAT == "int8" else byte.to(tl.float8e4nv, bitcast=True).to(tl.bfloat16)


@triton.jit
def _two_at_once(CODE: tl.constexpr, units, shift):
    return tl.inline_asm_elementwise(CODE, _OPERANDS, [units, shift], dtype=tl.bfloat16, is_pure=True, pack=2)

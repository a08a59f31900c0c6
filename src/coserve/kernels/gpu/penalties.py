"""Penalties and biases of rows that decode: what they have generated is counted on the GPU, which chooses it.

`engine.sampler`'s semantics, in float32: repetition looks at the prompt and at what was generated, presence and
frequency only at the latter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

NONE = -1  # instead of a slot
PROMPT = 1 << 30  # beside the count of a token: it is in the prompt
_CHUNK = 1024  # tokens of the vocabulary that one program shapes

_PROMPT = tl.constexpr(PROMPT)


@dataclass(frozen=True, eq=False)
class Penalties:
    """A slot holds one sequence's.

    seen int32 [slots, vocab]: how often a token was generated, and `PROMPT` where it is in the prompt.
    biases float32 [slots, vocab].
    strengths float32 [slots, 3]: the repetition penalty (1 = none), the presence and the frequency penalty.
    """

    seen: Tensor
    biases: Tensor
    strengths: Tensor

    @classmethod
    def empty(cls, slots: int, vocab: int, device: torch.device | str) -> Penalties:
        return cls(
            torch.zeros(slots, vocab, dtype=torch.int32, device=device),
            torch.zeros(slots, vocab, dtype=torch.float32, device=device),
            torch.ones(slots, 3, dtype=torch.float32, device=device),
        )

    @staticmethod
    def bytes(slots: int, vocab: int) -> int:
        return slots * (vocab * 8 + 12)

    def shape(self, logits: Tensor, slots: Tensor) -> Tensor:
        """logits [rows, vocab] in any float format -> float32, to the bit where the slot (int32 [rows]) is `NONE`.

        A logit above zero is divided by the repetition penalty, another multiplied, and then added to.
        """
        rows, vocab = logits.shape
        logits = logits.contiguous()
        shaped = torch.empty(rows, vocab, dtype=torch.float32, device=logits.device)
        tables = (self.seen, self.biases, self.strengths)
        _shape[(rows, triton.cdiv(vocab, _CHUNK))](logits, slots, *tables, shaped, vocab, CHUNK=_CHUNK)
        return shaped

    def count(self, slots: Tensor, tokens: Tensor) -> None:
        """The sequences in these slots, no two in one, have generated these tokens int64 [rows]: those from 0 on."""
        _count[(tokens.shape[0],)](self.seen, slots, tokens, self.seen.shape[1])


@triton.jit
def _shape(logits, slots, seen, biases, strengths, shaped, vocab, CHUNK: tl.constexpr):
    """Grid: rows, chunks."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = at < vocab
    values = tl.load(logits + row * vocab + at, mask=mask, other=0.0).to(tl.float32)
    if slot >= 0:
        repetition, presence = tl.load(strengths + slot * 3), tl.load(strengths + slot * 3 + 1)
        frequency = tl.load(strengths + slot * 3 + 2)
        known = tl.load(seen + slot * vocab + at, mask=mask, other=0)
        repeated = tl.where(values > 0, tl.div_rn(values, repetition), values * repetition)
        values = tl.where(known != 0, repeated, values)
        count = known & (_PROMPT - 1)
        values -= tl.where(count > 0, presence + frequency * count.to(tl.float32), 0.0)
        values += tl.load(biases + slot * vocab + at, mask=mask, other=0.0)
    tl.store(shaped + row * vocab + at, values, mask=mask)


@triton.jit
def _count(seen, slots, tokens, vocab):
    """Grid: rows."""
    row = tl.program_id(0)
    slot, token = tl.load(slots + row).to(tl.int64), tl.load(tokens + row)
    if (slot >= 0) & (token >= 0):
        at = seen + slot * vocab + token
        tl.store(at, tl.load(at) + 1)

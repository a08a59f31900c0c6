"""What a step chooses for its rows, and what it tells about that: the same whether it was captured or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coserve.engine.active import ActiveRequest, Sampled
from coserve.engine.gpu.card import Card
from coserve.engine.request import MOST_LOGPROBS
from coserve.kernels.gpu.penalties import Penalties
from coserve.kernels.gpu.sampling import sample


@dataclass(frozen=True)
class Asked:
    """What any row of a step asks for, beyond the best token or one drawn by temperature."""

    filtered: bool = False  # top_k, top_p or min_p
    shaped: bool = False  # penalties or biases
    told: bool = False  # logprobs

    @classmethod
    def by(cls, requests: Sequence[ActiveRequest]) -> Asked:
        params = [request.params for request in requests]
        return cls(
            filtered=any(not p.greedy and (p.top_k > 0 or p.top_p < 1 or p.min_p > 0) for p in params),
            shaped=any(p.shapes_logits for p in params),
            told=any(p.logprobs is not None for p in params),
        )


NOTHING_MORE = Asked()


@dataclass(frozen=True)
class Logprobs:
    """Of each row's token, then of its best ones: values float32 and ids int64 [rows, 1 + best]."""

    values: Tensor
    ids: Tensor

    @classmethod
    def of(cls, logits: Tensor, tokens: Tensor) -> Logprobs:
        """logits [rows, vocab] as the model gave them; what stands for a token below zero says nothing."""
        logprobs = logits.log_softmax(-1, dtype=torch.float32)
        values, ids = logprobs.topk(min(MOST_LOGPROBS, logits.shape[1]))
        own = tokens.clamp(min=0).unsqueeze(1)
        return cls(torch.cat([logprobs.gather(1, own), values], 1), torch.cat([own, ids], 1))

    def keep(self, other: Logprobs) -> Logprobs:
        return Logprobs(_copied(self.values, other.values), _copied(self.ids, other.ids))


@dataclass(frozen=True)
class Choice:
    """Tokens int64 [rows], or `sampling.TOO_FEW`; logprobs if any row asked for them."""

    tokens: Tensor
    logprobs: Logprobs | None

    @classmethod
    def room(cls, rows: int, vocab: int, zeros: Callable[..., Tensor]) -> Choice:
        """For as many rows; `zeros` makes tensors."""
        told = 1 + min(MOST_LOGPROBS, vocab)
        logprobs = Logprobs(zeros(rows, told, dtype=torch.float32), zeros(rows, told, dtype=torch.int64))
        return cls(zeros(rows, dtype=torch.int64), logprobs)

    def keep(self, other: Choice) -> Choice:
        """A copy of the other one in this one's first rows: on its way, where they are of another device."""
        logprobs = self.logprobs.keep(other.logprobs) if self.logprobs and other.logprobs else None
        return Choice(_copied(self.tokens, other.tokens), logprobs)

    def sampled(self, row: int, token: int, best: int | None) -> Sampled:
        """A row's token, with the logprobs of it and of so many best ones; None: without."""
        if best is None:
            return Sampled(token)
        assert self.logprobs is not None
        own, *values = self.logprobs.values[row, : 1 + best].tolist()
        ids = self.logprobs.ids[row, 1 : 1 + best].tolist()
        return Sampled(token, own, tuple(zip(ids, values, strict=True)))


class ChoiceInputs:
    """What `choose` takes of each row, told to the GPU in one copy, before the step whose tokens are chosen.

    Its memory is written to again when that step has landed. `rows`: a multiple of 4, as in `GpuRunner`.
    """

    def __init__(self, card: Card, rows: int):
        self._staged = card.host(6, rows, dtype=torch.int32)
        self._told = torch.zeros(6, rows, dtype=torch.int32, device=card.device)

    def tell(self, requests: Sequence[ActiveRequest], slots: Sequence[int]) -> tuple[Sequence[Tensor], Tensor]:
        """`slots`: of penalties -> what `sampling.sample` takes, and the slots."""
        ints, count = self._staged.numpy(), len(requests)
        floats, params = ints.view(np.float32), [request.params for request in requests]
        floats[0, :count] = [p.temperature for p in params]
        ints[1, :count] = [max(0, p.top_k) for p in params]
        floats[2, :count] = [p.top_p for p in params]
        floats[3, :count] = [p.min_p for p in params]
        floats[4, :count] = [0.0 if r.params.greedy else r.draw(r.completion_tokens) for r in requests]
        ints[5, :count] = slots
        self._told.copy_(self._staged, non_blocking=True)
        told = self._told[:, :count]
        temperature, top_p, min_p, uniform = (told[row].view(torch.float32) for row in (0, 2, 3, 4))
        return (temperature, told[1], top_p, min_p, uniform), told[5]


def choose(
    logits: Tensor, by_row: Sequence[Tensor], asked: Asked, penalties: Penalties | None, slots: Tensor
) -> Choice:
    """logits [rows, vocab] in any float format, which stay as they are. `by_row`: what `sampling.sample` takes.

    `slots` int32 [rows]: of penalties, which count the tokens.
    """
    acting = penalties if asked.shaped else None
    tokens = sample(acting.shape(logits, slots) if acting else logits, *by_row, filtered=asked.filtered)
    logprobs = Logprobs.of(logits, tokens) if asked.told else None
    if acting:
        acting.count(slots, tokens)  # last: a step that finds no memory has not counted anything
    return Choice(tokens, logprobs)


def _copied(here: Tensor, there: Tensor) -> Tensor:
    return here[: there.shape[0]].copy_(there, non_blocking=True)

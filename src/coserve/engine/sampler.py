"""From logits to tokens. Each row is decided by its own request's parameters and random numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coserve.engine.active import ActiveRequest, Sampled

_CANDIDATES = 256  # sorted first; the whole vocabulary only where these are too few


def sample(logits: Tensor, requests: Sequence[ActiveRequest]) -> list[Sampled]:
    """logits [requests, vocab] in any float format -> one token for each request."""
    if all(r.params.greedy and not r.params.shapes_logits and r.params.logprobs is None for r in requests):
        return [Sampled(token) for token in logits.argmax(-1).tolist()]
    return [sample_row(row, request) for row, request in zip(logits.float(), requests, strict=True)]


def sample_row(logits: Tensor, request: ActiveRequest) -> Sampled:
    """logits float32 [vocab] on the CPU."""
    shaped = _shape(logits, request) if request.params.shapes_logits else logits
    if request.params.greedy:
        token = int(shaped.argmax())
    else:
        token = _draw(shaped, request)
    if request.params.logprobs is None:
        return Sampled(token)
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(request.params.logprobs, logits.shape[0]))
    return Sampled(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _shape(logits: Tensor, request: ActiveRequest) -> Tensor:
    """Penalties and biases. Presence and frequency look at what was generated, repetition at the prompt too."""
    p, logits = request.params, logits.clone()
    if p.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(request.tokens)))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if request.output_counts and (p.presence_penalty or p.frequency_penalty):
        ids = torch.tensor(list(request.output_counts.keys()))
        counts = torch.tensor(list(request.output_counts.values()), dtype=torch.float32)
        logits[ids] -= p.presence_penalty + p.frequency_penalty * counts
    for token, bias in p.logit_bias.items():
        logits[token] += bias
    return logits


def _draw(logits: Tensor, request: ActiveRequest) -> int:
    """Temperature, then top_k, top_p and min_p, then one random number through the cumulative distribution."""
    p = request.params
    probs = (logits / p.temperature).softmax(-1)
    top_k = p.top_k if p.top_k > 0 else probs.shape[0]
    if top_k >= probs.shape[0] and p.top_p >= 1 and p.min_p == 0:
        ids = None
    else:
        probs, ids = _candidates(probs, top_k, p.top_p, p.min_p)
    cumulative = probs.double().cumsum(-1)
    drawn = int(torch.searchsorted(cumulative, request.draw(request.completion_tokens) * cumulative[-1]))
    drawn = min(drawn, probs.shape[0] - 1)
    return int(ids[drawn]) if ids is not None else drawn


def _candidates(probs: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """The tokens that top_k, top_p and min_p leave, best first: (probabilities, ids)."""
    limited = top_k < probs.shape[0]
    best, ids = probs.topk(top_k if limited else min(_CANDIDATES, probs.shape[0]))
    if limited:
        best = best / best.sum()
    elif not (best.sum() > top_p or best[-1] < min_p * best[0]):
        best, ids = probs.sort(descending=True)
    better = best.cumsum(-1) - best  # the mass of all better candidates
    kept = (better < top_p) & (best >= min_p * best[0])
    kept[0] = True
    return best[kept], ids[kept]

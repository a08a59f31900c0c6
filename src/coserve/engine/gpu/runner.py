"""Runs steps on a GPU. See `coserve.engine.gpu`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from coserve.engine.active import ActiveRequest, Sampled
from coserve.engine.batch import Batch, Ride
from coserve.engine.gpu.adapters import AdapterSlots
from coserve.engine.gpu.card import Card, Mark
from coserve.engine.gpu.graphs import DecodeGraphs
from coserve.engine.gpu.seats import Seats
from coserve.engine.load import Load
from coserve.engine.plan import Plan
from coserve.engine.request import SamplingParams
from coserve.engine.runner import Flight, Landed, Observe, made_up
from coserve.engine.sampler import needs_logits, sample_row
from coserve.engine.segment import Segment
from coserve.kernels import KVCache, LoraLayer
from coserve.kernels.gpu.decode import DecodeRows
from coserve.kernels.gpu.sampling import TOO_FEW, sample
from coserve.models.decoder import Decoder

_WARM_UP_ROWS = (16, 64, 256, 1024, 4096)
_IN_FLIGHT = 4  # steps whose tokens may not have been read; two are in flight at most


class GpuRunner:
    """`scratch`: a block of the cache that belongs to nobody. `blocks`: of one sequence at most."""

    def __init__(self, decoder: Decoder, cache: KVCache, card: Card, *, rows: int, blocks: int, scratch: int):
        self._decoder, self._cache, self._card = decoder, cache, card
        decoding = DecodeRows.idle(rows, blocks, scratch, card.device)
        self._most = rows
        self._adapters = AdapterSlots(decoder)
        self._seats = Seats(card, decoding, self._adapters)
        self._graphs = DecodeGraphs(decoder, cache, card, decoding, self._adapters)
        self._tokens = [card.host(rows, dtype=torch.int64) for _ in range(_IN_FLIGHT)]
        self._launched = 0

    def launch(self, plan: Plan, ride: Ride | None) -> Flight:
        if ride is None and self._only_decodes(plan):
            return self._replay(plan, self._seats.seat)
        return self._launch_each(plan, ride)

    def goes_ahead(self, plan: Plan) -> bool:
        return self._only_decodes(plan) and not any(r.careful or needs_logits(r) for r, _ in plan.chosen)

    def launch_ahead(self, plan: Plan) -> Flight:
        try:
            return self._replay(plan, self._seats.go_on)
        except Exception:
            self._seats.stand_up()  # they were told of a step that did not take place
            raise

    @torch.inference_mode()
    def warm_up(self, blocks: Sequence[int], most_rows: int, observe: Observe) -> None:
        self._graphs.warm_up()
        if len(blocks) > 1:  # a prompt in a step takes other kernels of those that decode
            decoding = Segment("decode", [0], 0, blocks[:1], sample=True)
            self._compute(Batch.of([decoding, made_up(1, blocks[1:])]), None)
        for rows in (rows for rows in _WARM_UP_ROWS if rows <= most_rows):
            for _ in range(2):  # the first time compiles, and is not learnt from
                batch = Batch.of([made_up(rows, blocks)])
                started = self._card.mark()
                self._decoder.logits(self._compute(batch, None))
                ended = self._card.mark()
                ended.wait()
                observe(batch.load, ended.seconds_since(started))

    def forget(self) -> None:
        self._graphs.forget()

    def give_way(self) -> None:
        self._seats.stand_up()  # they may have been told what the GPU was not
        self._graphs.forget()
        self._adapters.forget()
        self._card.give_back()

    def let_go(self, adapter: Sequence[LoraLayer]) -> None:
        self._adapters.let_go(adapter)

    def _only_decodes(self, plan: Plan) -> bool:
        return all(s.kind == "decode" for _, s in plan.chosen) and len(plan.chosen) <= self._most

    # ---- a graph ----------------------------------------------------------------------------------------------

    def _replay(self, plan: Plan, seat: Callable[[Plan], list[int]]) -> Flight:
        adapters = [segment.adapter for _, segment in plan.chosen if segment.adapter is not None]
        if self._adapters.hold(adapters):
            self._seats.stand_up()
            self._graphs.forget_adapted()
        launched = self._card.mark()
        rows = seat(plan)
        kind = self._graphs.kind(
            max(rows) + 1,
            context=max(segment.start for _, segment in plan.chosen) + 1,
            filtered=any(_filters(request.params) for request, _ in plan.chosen),
            adapted=bool(adapters),
        )
        if self._graphs.capture(kind):
            launched = self._card.mark()  # what capturing took is no step's time: the predictor learns from that
        chosen = self._graphs.run(kind)
        return self._flight(plan, None, Load.of(plan.segments()), chosen.tokens, chosen.logits, rows, launched)

    # ---- operation by operation -------------------------------------------------------------------------------

    def _launch_each(self, plan: Plan, ride: Ride | None) -> Flight:
        launched = self._card.mark()
        batch = Batch.of([*plan.segments(), *(ride.segments if ride else ())])
        asking = plan.asking()
        hidden = self._compute(batch, ride)
        if not asking:
            return self._flight(plan, ride, batch.load, None, None, [], launched)
        with torch.inference_mode():
            logits = self._decoder.logits(hidden)
            tokens = _choose(logits, asking)
        return self._flight(plan, ride, batch.load, tokens, logits, range(len(asking)), launched)

    @torch.inference_mode()
    def _compute(self, batch: Batch, ride: Ride | None) -> Tensor:
        """The hidden states of the rows that are sampled from."""
        there = batch.to(self._card.device)
        keep = ride.keep_of(batch.rows) if ride else None
        hidden = self._decoder.forward(there.token_ids, there.layout, self._cache, batch.adapters, keep)
        return hidden[there.logit_rows]

    # ---- landing ----------------------------------------------------------------------------------------------

    def _flight(
        self,
        plan: Plan,
        ride: Ride | None,
        load: Load,
        tokens: Tensor | None,
        logits: Tensor | None,
        rows: Sequence[int],
        launched: Mark,
    ) -> Flight:
        """`rows`: of `tokens` and `logits`, for each segment that asked."""
        self._launched += 1
        number, here = self._launched, self._tokens[self._launched % _IN_FLIGHT]
        if tokens is not None:
            here[: tokens.shape[0]].copy_(tokens, non_blocking=True)
        ended = self._card.mark()

        def land() -> Landed:
            ended.wait()
            sampled: list[Sampled | None] = []
            if tokens is not None and logits is not None:
                values, still_there = here.tolist(), number == self._launched
                for request, row in zip(plan.asking(), rows, strict=True):
                    sampled.append(_sampled(request, values[row], logits[row] if still_there else None))
            return Landed(sampled, ended.seconds_since(launched))

        return Flight(plan, load, ride, land)


def _sampled(request: ActiveRequest, token: int, logits: Tensor | None) -> Sampled | None:
    """What the GPU has chosen, where that is all that was asked for; `logits` [vocab] are None when they are gone."""
    if token != TOO_FEW and not needs_logits(request):
        return Sampled(token)
    if logits is None:
        request.careful = True
        return None
    return sample_row(logits.cpu().float(), request)


def _filters(params: SamplingParams) -> bool:
    return not params.greedy and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def _choose(logits: Tensor, requests: Sequence[ActiveRequest]) -> Tensor:
    """logits [requests, vocab] -> tokens int64, or `TOO_FEW`."""
    params = [request.params for request in requests]
    floats = np.array(
        [
            [p.temperature for p in params],
            [p.top_p for p in params],
            [p.min_p for p in params],
            [0.0 if r.params.greedy else r.draw(r.completion_tokens) for r in requests],
        ],
        dtype=np.float32,
    )
    temperature, top_p, min_p, uniform = torch.from_numpy(floats).to(logits.device)
    top_k = torch.tensor([max(0, p.top_k) for p in params], dtype=torch.int32, device=logits.device)
    return sample(logits, temperature, top_k, top_p, min_p, uniform, filtered=any(map(_filters, params)))

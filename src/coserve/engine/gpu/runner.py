"""Runs steps on a GPU. See `coserve.engine.gpu`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from coserve.engine.active import ActiveRequest, Sampled
from coserve.engine.batch import Batch, Ride
from coserve.engine.gpu.adapters import AdapterSlots
from coserve.engine.gpu.card import Card, Mark
from coserve.engine.gpu.choice import Asked, Choice, ChoiceInputs, choose
from coserve.engine.gpu.graphs import DecodeGraphs, Left
from coserve.engine.gpu.penalties import PenaltySlots
from coserve.engine.gpu.prompt_graphs import PromptGraphs
from coserve.engine.gpu.seats import Seats
from coserve.engine.load import Load
from coserve.engine.plan import Plan
from coserve.engine.runner import Flight, Landed, Observe, made_up
from coserve.engine.sampler import sample_row
from coserve.engine.segment import Segment
from coserve.kernels import KVCache, LoraLayer
from coserve.kernels.gpu.decode import DecodeRows
from coserve.kernels.gpu.sampling import TOO_FEW
from coserve.models.decoder import Decoder

_WARM_UP_ROWS = (4096, 1024, 512, 256, 128, 64, 16)  # graphs take less memory where larger ones came first
_IN_FLIGHT = 4  # steps whose tokens may not have been read; two are in flight at most


class GpuRunner:
    """`scratch`: a block of the cache that belongs to nobody. `blocks`: of one sequence at most."""

    def __init__(self, decoder: Decoder, cache: KVCache, card: Card, *, rows: int, blocks: int, scratch: int):
        self._decoder, self._cache, self._card = decoder, cache, card
        rows = -(-rows // 4) * 4  # what the GPU is told of them begins at 16 bytes: elsewhere, kernels are others
        decoding = DecodeRows.idle(rows, blocks, scratch, card.device)
        self._most, vocab = rows, decoder.config.vocab_size
        self._adapters, self._penalties = AdapterSlots(decoder), PenaltySlots(rows, vocab, card.device)
        self._seats = Seats(card, decoding, self._adapters, self._penalties)
        self._graphs = DecodeGraphs(decoder, cache, card, decoding, self._adapters, self._penalties)
        self._prompts = PromptGraphs(decoder, cache, card, rows=rows, blocks=blocks, scratch=scratch)
        self._asked = ChoiceInputs(card, rows)
        self._here = [Choice.room(rows, vocab, card.host) for _ in range(_IN_FLIGHT)]
        self._launched = 0

    def launch(self, plan: Plan, ride: Ride | None) -> Flight:
        asking = plan.asking()
        asked = Asked.by(asking)
        self._penalties.hold(asking)
        self._graphs.prepare(asked)
        if ride is None and self._only_decodes(plan):
            return self._replay(plan, asked, self._seats.seat)
        return self._launch_mixed(plan, ride, asking, asked)

    def goes_ahead(self, plan: Plan) -> bool:
        return self._only_decodes(plan) and not any(request.careful for request, _ in plan.chosen)

    def launch_ahead(self, plan: Plan) -> Flight:
        try:
            return self._replay(plan, Asked.by(plan.asking()), self._seats.go_on)
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
                compute, _ = self._way(batch, None)
                started = self._card.mark()
                compute()
                ended = self._card.mark()
                ended.wait()
                observe(batch.load, ended.seconds_since(started))

    def forget(self) -> None:
        self._graphs.forget()
        self._prompts.forget()
        self._penalties.forget()

    def give_way(self) -> None:
        self._seats.stand_up()  # they may have been told what the GPU was not
        self.forget()
        self._prompts.rest()
        self._adapters.forget()
        self._card.give_back()

    def let_go(self, adapter: Sequence[LoraLayer]) -> None:
        self._adapters.let_go(adapter)

    def _only_decodes(self, plan: Plan) -> bool:
        return all(s.kind == "decode" for _, s in plan.chosen) and len(plan.chosen) <= self._most

    # ---- a graph ----------------------------------------------------------------------------------------------

    def _replay(self, plan: Plan, asked: Asked, seat: Callable[[Plan], list[int]]) -> Flight:
        adapters = [segment.adapter for _, segment in plan.chosen if segment.adapter is not None]
        if self._adapters.hold(adapters):
            self._seats.stand_up()
            self._graphs.forget_adapted()
        launched = self._card.mark()
        rows = seat(plan)
        kind = self._graphs.kind(
            max(rows) + 1,
            max(segment.start for _, segment in plan.chosen) + 1,
            asked,
            adapted=bool(adapters),
        )
        if self._graphs.capture(kind):
            launched = self._card.mark()  # what capturing took is no step's time: the predictor learns from that
        left = self._graphs.run(kind)
        return self._flight(plan, None, Load.of(plan.segments()), left, rows, launched)

    # ---- with prompts -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _launch_mixed(self, plan: Plan, ride: Ride | None, asking: Sequence[ActiveRequest], asked: Asked) -> Flight:
        launched = self._card.mark()
        batch = Batch.of([*plan.segments(), *(ride.segments if ride else ())])
        by_row, slots = self._asked.tell(asking, [self._penalties.slot(request) for request in asking])
        compute, captured = self._way(batch, ride)
        if captured:
            launched = self._card.mark()
        logits, left = compute(), None
        if asking:
            left = Left(logits, choose(logits, by_row, asked, self._penalties.table, slots))
        return self._flight(plan, ride, batch.load, left, range(len(asking)), launched)

    def _way(self, batch: Batch, ride: Ride | None) -> tuple[Callable[[], Tensor], bool]:
        """What launches a batch and gives the logits of the rows that are sampled from; whether that took a capture."""
        kind = self._prompts.kind(batch, ride)
        if kind is None:
            return lambda: self._compute(batch, ride), False
        captured = self._prompts.capture(kind, batch)
        return lambda: self._prompts.run(kind, batch), captured

    @torch.inference_mode()
    def _compute(self, batch: Batch, ride: Ride | None) -> Tensor:
        """The logits of the rows that are sampled from, operation by operation."""
        there = batch.to(self._card.device)
        keep = ride.keep_of(batch.rows) if ride else None
        hidden = self._decoder.forward(there.token_ids, there.layout, self._cache, batch.adapters, keep)
        sampled = hidden[there.logit_rows]
        return self._decoder.logits(sampled) if len(sampled) else sampled

    # ---- landing ----------------------------------------------------------------------------------------------

    def _flight(
        self,
        plan: Plan,
        ride: Ride | None,
        load: Load,
        left: Left | None,
        rows: Sequence[int],
        launched: Mark,
    ) -> Flight:
        """`rows`: of what the step has left, for each segment that asked."""
        self._launched += 1
        number = self._launched
        here = self._here[number % _IN_FLIGHT].keep(left.choice) if left is not None else None
        ended = self._card.mark()

        def land() -> Landed:
            ended.wait()
            sampled: list[Sampled | None] = []
            if left is not None and here is not None:
                tokens, still_there = here.tokens.tolist(), number == self._launched
                for request, row in zip(plan.asking(), rows, strict=True):
                    if tokens[row] == TOO_FEW:
                        sampled.append(_sampled_here(request, left.logits[row] if still_there else None))
                    else:
                        self._penalties.landed(request)
                        sampled.append(here.sampled(row, tokens[row], request.params.logprobs))
            return Landed(sampled, ended.seconds_since(launched))

        return Flight(plan, load, ride, land)


def _sampled_here(request: ActiveRequest, logits: Tensor | None) -> Sampled | None:
    """Of a row for which the GPU could not choose; `logits` [vocab] are None when they are gone."""
    if logits is None:
        request.careful = True
        return None
    return sample_row(logits.cpu().float(), request)

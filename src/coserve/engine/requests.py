"""The requests that an engine has accepted: what steps bring them, until their last output."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from coserve.engine.active import ActiveRequest, Sampled
from coserve.engine.plan import Plan
from coserve.engine.request import Output, TokenLogprob
from coserve.engine.scheduler import Scheduler
from coserve.engine.stats import Counters
from coserve.errors import CoserveError, Unavailable
from coserve.models.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Requests:
    """For the engine's thread alone, on which callers hear of their outputs too."""

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer, counters: Counters):
        self._scheduler, self._tokenizer, self._counters = scheduler, tokenizer, counters
        self._by_id: dict[str, ActiveRequest] = {}

    def accept(self, request: ActiveRequest) -> None:
        self._by_id[request.request.id] = request
        self._scheduler.add(request)

    def cancel(self, request_id: str) -> None:
        """No effect on one that has ended."""
        request = self._by_id.get(request_id)
        if request is not None:
            self._counters.cancelled += 1
            self.finish(request, "cancelled")

    def expire(self) -> None:
        """End those that were not admitted within their time."""
        for request in self._scheduler.waiting.expired(time.perf_counter()):
            if request.request.id in self._by_id:
                self._counters.expired += 1
                told = f"The request was not served within {request.request.queue_seconds:g} seconds; try again later."
                self.finish(request, "error", Unavailable(told))

    def settle(self, plan: Plan, sampled: Sequence[Sampled | None]) -> None:
        """Move every request on by what a step has computed and chosen, and tell the callers.

        One that ended, or did not get its token, while a step ahead was on its way stays where it was.
        """
        now, tokens = time.perf_counter(), iter(sampled)
        for request, segment in plan.chosen:
            token = next(tokens) if segment.sample else None
            ended = self._by_id.get(request.request.id) is not request
            if ended or segment.start != request.computed or (segment.sample and token is None):
                if segment.sample:
                    self._scheduler.take_back(request)
                continue
            request.computed += len(segment.tokens)
            if segment.kind == "prefill":
                self._counters.prompt_tokens += len(segment.tokens)
            if token is not None:
                self._emit(request, token, now)

    def finish(self, request: ActiveRequest, reason: str, error: CoserveError | None = None) -> None:
        """End one with an output of its own."""
        self._send(request, request.detokenizer.flush() if error is None else "", reason, error=error)
        self._forget(request)

    def fail_all(self, error: Exception) -> None:
        told = error if isinstance(error, CoserveError) else CoserveError("The engine failed on this request.")
        self.finish_all("error", told)

    def finish_all(self, reason: str, error: CoserveError | None = None) -> None:
        for request in list(self._by_id.values()):
            try:
                self.finish(request, reason, error)
            except Exception:  # half accepted: the thread must go on for all the others
                log.exception("a request that ended could not be forgotten")

    def blocks(self) -> list[int]:
        """Of the KV cache: those in use."""
        return [block for request in self._by_id.values() for block in request.blocks]

    def _emit(self, request: ActiveRequest, sampled: Sampled, now: float) -> None:
        reason = request.append(sampled.token_id)
        c = self._counters
        c.output_tokens += 1
        if request.last_token is None:
            c.ttft.observe(now - request.arrived, now)
        else:
            c.itl.observe(now - request.last_token, now)
        request.last_token = now
        if reason == "stop":
            text = request.detokenizer.flush()
        else:
            text, stopped = request.detokenizer.push(sampled.token_id)
            if stopped:
                reason = "stop"
            elif reason is not None:
                text += request.detokenizer.flush()
        self._send(request, text, reason, sampled)
        if reason is not None:
            c.finished += 1
            self._forget(request)

    def _send(
        self,
        request: ActiveRequest,
        text: str,
        reason: str | None,
        sampled: Sampled | None = None,
        error: CoserveError | None = None,
    ) -> None:
        output = Output(
            request.request.id,
            sampled.token_id if sampled else None,
            text,
            reason,
            request.prompt_tokens,
            request.completion_tokens,
            self._logprob(sampled) if sampled else None,
            error,
        )
        try:
            request.on_output(output)
        except Exception:
            log.exception("a caller's on_output raised; its request goes on")

    def _logprob(self, sampled: Sampled) -> TokenLogprob | None:
        if sampled.logprob is None:
            return None
        name = self._tokenizer.token_text
        top = tuple((token, name(token), value) for token, value in sampled.top)
        return TokenLogprob(sampled.token_id, name(sampled.token_id), sampled.logprob, top)

    def _forget(self, request: ActiveRequest) -> None:
        self._by_id.pop(request.request.id, None)
        self._scheduler.release(request)

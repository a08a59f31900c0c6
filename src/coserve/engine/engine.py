"""The engine: one thread that steps. Spoken to through `submit`, `cancel` and `attach`; answers through callbacks."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from coserve.engine.active import ActiveRequest, Sampled
from coserve.engine.background import BackgroundWork
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.batch import Ride
from coserve.engine.blocks import BlockPool, blocks_for
from coserve.engine.cache_size import cache_tokens
from coserve.engine.config import EngineConfig
from coserve.engine.offload import Offloaded, offload
from coserve.engine.plan import Plan
from coserve.engine.predictor import Predictor
from coserve.engine.protection import MARGIN, Protection
from coserve.engine.request import Output, Request, SamplingParams, TokenLogprob
from coserve.engine.runner import Flight, make_runner, takes_rides
from coserve.engine.scheduler import Scheduler
from coserve.engine.search import largest
from coserve.engine.segment import Segment
from coserve.engine.shortage import Shortage
from coserve.engine.slack import SlackAccount
from coserve.engine.stats import Counters, EngineStats
from coserve.errors import (
    ContextLengthExceeded,
    CoserveError,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    Unavailable,
)
from coserve.kernels import BLOCK_SIZE
from coserve.kernels.calibration import load_or_measure_chip
from coserve.kernels.device import choose_device, is_gpu
from coserve.kernels.memory import is_out_of_memory, keep_freed_memory
from coserve.models.adapter import Adapter, load_adapter
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.detokenizer import Detokenizer
from coserve.models.generation import GenerationConfig
from coserve.models.hub import BUILTIN, resolve_model
from coserve.models.tokenizer import Tokenizer
from coserve.roofline import Estimator, Roofline

log = logging.getLogger(__name__)
T = TypeVar("T")

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_IDLE_SECONDS = 0.25  # between two looks at the clock while there is nothing to do
_SMALLEST_CHUNK = 16  # tokens of a prompt that go along in any step
_IDLE_SLICE_LIMITS = (0.001, 0.1)  # seconds
_NO_MEMORY = (
    "The GPU's memory does not suffice for a step of {} tokens. Lower max_batch_tokens or max_num_seqs, so that steps "
    "are smaller, or kv_cache_tokens, so that they have more room; or end what else uses the GPU."
)
_NO_MEMORY_TO_TRAIN = (
    "The GPU's memory does not suffice to serve and to train. Lower the job's micro_batch_tokens or max_length, or the "
    "server's kv_cache_tokens; or end what else uses the GPU."
)
_EXPECTED_SECONDS = 10.0  # for so long after a request, another one of its priority may come any moment


class Engine:
    """Serves one base model and its adapters, and runs background work in the slack.

    Use `Engine.from_pretrained`, then `generate` or `chat`; servers use `submit`. The engine is made on its own thread,
    which ends with `shutdown` (or on leaving a `with` block).
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        name: str,
        *,
        roofline: Roofline,
        config: EngineConfig | None = None,
        generation_config: GenerationConfig | None = None,
    ):
        self.config = (config or EngineConfig()).on(decoder.device.type)
        self.generation_config = generation_config or GenerationConfig()
        self.decoder, self.tokenizer, self.name = decoder, tokenizer, name
        self.cost = decoder.cost
        self.estimator = Estimator(roofline)
        self._predictor = Predictor(self.cost, self.estimator)
        serving = blocks_for(cache_tokens(decoder, self.config))
        training = blocks_for(self.config.train_tokens) if takes_rides(decoder) else 0
        self.cache = decoder.new_cache(serving + training + 1)
        self._flight: Flight | None = None  # a step that was launched ahead, before the one before it had landed
        self._due_seconds = 0.0  # that slices may take as soon as the step on its way has landed; under a factor
        self.train_blocks = list(range(serving, serving + training))
        self.scheduler = Scheduler(self.config, BlockPool(serving))
        self.max_context = min(decoder.max_positions, serving * BLOCK_SIZE)
        self._runner = make_runner(
            decoder,
            self.cache,
            rows=self.config.max_num_seqs,
            blocks=blocks_for(self.max_context),
            scratch=serving + training,
        )
        factor = 1.0 if self.config.protect == "goals" else float(self.config.protect)
        self._slack = SlackAccount(factor)
        self._protection = Protection(self.config, self._predictor)
        self._shortage = Shortage(self.config.max_batch_tokens)
        self._last_seen: dict[int, float] = {}  # when a request of a priority last ran
        self._counters = Counters()
        self._adapters: dict[str, Adapter] = {}
        self._requests: dict[str, ActiveRequest] = {}
        self._background = BackgroundQueue.on(decoder.device, self.estimator)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Requests handed over but not yet in the scheduler, by priority; guarded by _lock.
        self._submitted: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._stopping = False
        self._offloaded: Offloaded | None = None  # while it sleeps
        self._awake = threading.Condition()  # held by whoever takes the device's memory, or gives it back
        self._warm_up()
        self._thread = threading.current_thread()
        # Running mean of a prompt's predicted seconds: what a TTFT is made of.
        self._first_token_seconds = self._predictor.seconds([Segment("prefill", [0] * 128, 0, (), sample=True)])

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "builtin",
        *,
        home: Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        weights: str = "auto",
        name: str | None = None,
        config: EngineConfig | None = None,
    ) -> Engine:
        """Load a model ("builtin", a local directory or a hub id), measure the chip (or use the measurement kept in
        `home`), and start.

        `device`: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1". `dtype`: of the arithmetic. `weights`: of the
        matrices, "auto", "bf16", "int8", "int4" or, on a GPU, "fp8"; what a CPU has quantised is kept in `home`. Raises
        `ModelError` for what cannot be loaded, `InvalidRequest` for a wrong `device`, `dtype` or `weights`.
        """
        if dtype != "auto" and dtype not in DTYPES:
            raise InvalidRequest(f"dtype is {dtype!r}; it must be auto, bfloat16 or float32.", param="dtype")
        chosen = choose_device(device)
        keep_freed_memory()
        made: queue.SimpleQueue[Engine | BaseException] = queue.SimpleQueue()

        def live() -> None:
            try:
                engine = cls._load(model, home, chosen, DTYPES.get(dtype), weights, name, config)
            except BaseException as error:
                made.put(error)
                return
            made.put(engine)
            engine._loop()

        # Everything that computes runs on this one thread: a second one with OpenMP threads of its own would make the
        # runtime put both teams to sleep between operations, which doubles the time of a small step.
        threading.Thread(target=live, name="coserve-engine", daemon=True).start()
        engine = made.get()
        if isinstance(engine, BaseException):
            raise engine
        return engine

    @classmethod
    def _load(
        cls,
        model: str | Path,
        home: Path | None,
        device: torch.device,
        dtype: torch.dtype | None,
        weights: str,
        name: str | None,
        config: EngineConfig | None,
    ) -> Engine:
        cache = home / "cache" if home else None
        path = resolve_model(model, cache_dir=cache / "hub" if cache else None)
        kept = cache / "weights" if cache else None
        decoder = Decoder.from_directory(path, device=device, dtype=dtype, weights=weights, cache=kept)
        measured = cache / "chip.json" if cache else None
        chip = load_or_measure_chip(measured, decoder.dtype, decoder.weight_format, device)
        own_name = path.resolve().name if model != BUILTIN and Path(model).exists() else str(model)
        return cls(
            decoder,
            Tokenizer.from_directory(path),
            name or own_name,
            roofline=Roofline(chip),
            config=config,
            generation_config=GenerationConfig.from_directory(path),
        )

    # ---- for callers, from any thread -------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def model_config(self) -> ModelConfig:
        return self.decoder.config

    def models(self) -> list[str]:
        """The base model's name, then the adapters'."""
        return [self.name, *sorted(self._adapters)]

    def submit(self, request: Request, on_output: Callable[[Output], None]) -> None:
        """Queue a request. `on_output` is called from the engine's thread with each of its outputs; keep it cheap.

        Raises `ModelNotFound`, `ContextLengthExceeded` (it could never fit), `InvalidRequest`, or `Unavailable` when
        the queue is full.
        """
        active = self._activate(request, on_output)
        with self._lock:
            if self._stopping:
                raise Unavailable("the engine is shutting down.")
            # Those of lower priority do not count: a crowd of them keeps nobody out.
            ahead = self.scheduler.waiting.count_from(request.priority)
            ahead += sum(count for priority, count in self._submitted.items() if priority >= request.priority)
            if ahead >= self.config.max_waiting:
                raise Unavailable(
                    f"the queue is full ({self.config.max_waiting} requests wait already); try again shortly."
                )
            self._submitted[request.priority] += 1
        self._inbox.put(lambda: self._accept(active))

    def cancel(self, request_id: str) -> None:
        """End a request early; its last output says "cancelled". No effect on one that has ended."""
        self._inbox.put(lambda: self._cancel(request_id))

    def generate(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, *, model: str | None = None
    ) -> Iterator[Output]:
        """Stream the continuation of a prompt (text, or token ids). Leaving the loop early cancels the request."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        request = Request(tuple(ids), params or self.default_params(), model or self.name)
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self.submit(request, outputs.put)
        finished = False
        try:
            while not finished:
                output = outputs.get()
                finished = output.finish_reason is not None
                if output.error is not None:
                    raise output.error
                yield output
        finally:
            if not finished:
                self.cancel(request.id)

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        params: SamplingParams | None = None,
        *,
        model: str | None = None,
    ) -> Iterator[Output]:
        """Stream the assistant's answer to a conversation, through the model's chat template."""
        yield from self.generate(self.tokenizer.apply_chat_template(messages), params, model=model)

    def default_params(self) -> SamplingParams:
        """What the model's `generation_config.json` suggests."""
        c = self.generation_config
        suggested = {
            "temperature": 0.0 if c.do_sample is False else c.temperature,
            "top_p": c.top_p,
            "top_k": c.top_k,
            "min_p": c.min_p,
            "repetition_penalty": c.repetition_penalty,
        }
        return SamplingParams(**{name: value for name, value in suggested.items() if value is not None})  # type: ignore[arg-type]

    def load_adapter(self, name: str, path: Path) -> None:
        """Serve a PEFT directory under a name of its own; the requests in flight go on.

        Waits while the engine sleeps, as an adapter takes the device's memory; not from the engine's own thread.
        Raises `ModelError`, and `Unavailable` if the engine shuts down meanwhile.
        """
        if name == self.name:
            raise InvalidRequest(f"{name!r} is the base model's name; an adapter needs its own.", param="name")
        # In a thread that ends: see `from_pretrained` on OpenMP's threads.
        with self.awake(), ThreadPoolExecutor(max_workers=1) as once:
            decoder = self.decoder
            loaded = once.submit(load_adapter, name, path, decoder.config, decoder.dtype, decoder.device)
            adapter = loaded.result()
        replaced, self._adapters[name] = self._adapters.get(name), adapter
        self._let_go(replaced)

    def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter to new requests; those in flight finish with it."""
        self._let_go(self._adapters.pop(name, None))

    def _let_go(self, adapter: Adapter | None) -> None:
        if adapter is not None:
            self.call(lambda: self._runner.let_go(adapter.layers))

    def attach(self, work: BackgroundWork) -> None:
        """Run background work in the slack until it is finished; works run one at a time, in order."""
        self._inbox.put(lambda: self._background.add(work))

    def call(self, function: Callable[[], None]) -> None:
        """Run something short on the engine's thread, between two steps."""
        self._inbox.put(function)

    def sleep(self) -> int:
        """Move weights and KV cache from the GPU's memory to main memory, and do nothing until `wake`.

        Returns when the memory is free for other programs: how many bytes. Requests in flight, those that come
        meanwhile and background work wait, and go on afterwards as if nothing had been. On a CPU the engine only rests:
        there is nowhere to move to. From any thread, but not from `on_output`, which is in the middle of a step. Raises
        `Unavailable` if main memory has no room; then the engine goes on.
        """
        return self._between_steps(self._fall_asleep)

    def wake(self) -> None:
        """Undo `sleep`; returns when the engine works again. Raises `Unavailable` if the GPU's memory is taken by
        another program; then it sleeps on."""
        self._between_steps(self._wake_up)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Within this the engine does not sleep: for other threads that take the device's memory.

        Waits for `wake` while it sleeps. Keep it short, and wait for no step within. Raises `Unavailable` if the engine
        shuts down.
        """
        with self._awake:
            self._awake.wait_for(lambda: self._stopping or not self.asleep)
            if self._stopping:
                raise Unavailable("the engine is shutting down.")
            yield

    @property
    def asleep(self) -> bool:
        return self._offloaded is not None

    def stats(self) -> EngineStats:
        c, chip = self._counters, self.estimator.roofline.chip
        ttft, itl = c.ttft.recent(0.5, 0.99), c.itl.recent(0.5, 0.99)
        with self._lock:
            submitted = self._submitted.total()
        return EngineStats(
            chip=chip.name,
            chip_bandwidth=chip.bandwidth,
            chip_flops=chip.flops,
            asleep=self.asleep,
            requests_running=len(self.scheduler.running),
            requests_waiting=len(self.scheduler.waiting) - len(self.scheduler.parked) + submitted,
            requests_parked=len(self.scheduler.parked),
            requests_finished=c.finished,
            requests_cancelled=c.cancelled,
            requests_expired=c.expired,
            prompt_tokens=c.prompt_tokens,
            output_tokens=c.output_tokens,
            training_tokens=c.training_tokens,
            steps=c.steps,
            inference_seconds=c.inference_seconds,
            training_seconds=c.training_seconds,
            idle_seconds=c.idle_seconds,
            kv_blocks_used=self.scheduler.pool.used,
            kv_blocks_total=self.scheduler.pool.total,
            preemptions=self.scheduler.preemptions,
            mbu=c.mbu,
            predicted_step_seconds=c.predicted,
            measured_step_seconds=c.measured,
            step_error_median=self._predictor.median_error,
            ttft=c.ttft.histogram(),
            itl=c.itl.histogram(),
            recent_ttft_p50=ttft[0],
            recent_ttft_p99=ttft[1],
            recent_itl_p50=itl[0],
            recent_itl_p99=itl[1],
        )

    def count_training_tokens(self, tokens: int) -> None:
        """Background work reports what it has trained on; for the statistics. From the engine's thread."""
        self._counters.training_tokens += tokens

    def shutdown(self) -> None:
        """Stop the thread. Requests in flight end as "cancelled"; background work stays where it is."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        self._inbox.put(lambda: None)
        with self._awake:
            self._awake.notify_all()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # ---- the loop, on the engine's own thread -----------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping:
            try:
                self._read_inbox()
                self._expire()
                if self.asleep:
                    self._wait()
                elif self._flight is not None or self.scheduler.has_work:
                    self.step()
                elif not self._run_idle_slice():
                    self._wait()
            except Exception as error:
                log.exception("a step failed; all requests end with an error")
                self._flight = None
                self._fail_all(error)
        self._read_inbox()  # nobody shall wait for an answer
        for request in list(self._requests.values()):
            self._finish(request, "cancelled")

    def step(self) -> None:
        """One forward pass: the highest priority, who may ride along of the others, train tokens; then the slack."""
        flight = self._flight or self._launch()
        if flight is None:
            return
        behind = self._launch_slices(flight)
        self._flight = None if behind else self._launch_ahead(flight)
        self._land(flight, behind)

    def _launch(self) -> Flight | None:
        """The next step; None if it found no memory. Then something has given way, and the step after it is another."""
        plan = self._plan(time.perf_counter())
        flight = self._if_memory_reaches(plan, lambda: self._runner.launch(plan, self._ride(plan)))
        if flight is None:
            self._give_way(plan)
        else:
            self._shortage.launched()
        return flight

    def _launch_ahead(self, flight: Flight) -> Flight | None:
        """The next step too, if it will be the same again, and nobody has come who should be in it."""
        if self._somebody_came() or not self._runner.goes_ahead(flight.plan):
            return None
        now = time.perf_counter()
        plan = self.scheduler.plan_ahead(flight.plan, now)
        if plan is None:
            return None
        self._see(now)
        plan.alone = self._predictor.seconds(plan.segments())
        return self._if_memory_reaches(plan, lambda: self._runner.launch_ahead(plan))

    def _if_memory_reaches(self, plan: Plan, launch: Callable[[], Flight]) -> Flight | None:
        """The flight, or None, and the plan has come to nothing."""
        try:
            return launch()
        except Exception as error:  # which holds on to all that the step had allocated, until it is gone
            if not is_out_of_memory(error):
                raise
            log.warning("a step of %d tokens found no memory: %s", plan.rows, str(error))
        for request in plan.asking():
            self.scheduler.take_back(request)
        self._protection.take_back(plan)
        return None

    def _give_way(self, plan: Plan) -> None:
        """Make room for a step that found no memory: by what can be made again, then by smaller steps, then by a job,
        and only then by requests, those whose prompts are in the step before those that decode."""
        gave = self._background.give_way()
        self._runner.give_way()
        if self._shortage.try_again() or gave:
            return
        prompts = [request for request, _ in plan.chosen if not request.decoding]
        if prompts and self._shortage.make_smaller(plan.rows, self._least_rows(), time.perf_counter()):
            return
        if self._background.end_first(OutOfMemory(_NO_MEMORY_TO_TRAIN)):
            return
        told = OutOfMemory(_NO_MEMORY.format(plan.rows))
        log.error("requests fail for want of memory: %s", told)
        for request in prompts or [request for request, _ in plan.chosen]:
            self._finish(request, "error", told)

    def _land(self, flight: Flight, behind: float = 0.0) -> None:
        """Wait for a step; slices of so many seconds were launched behind it."""
        landed = flight.land()
        if flight.ride is not None:
            self._background.rode(flight.ride)
        plan = flight.plan
        whole = plan.alone + plan.grown
        self._account(flight, whole, landed.seconds)
        self._settle(plan, landed.sampled)
        self._use_slack(plan, min(whole, landed.seconds), behind)

    def _plan(self, now: float) -> Plan:
        plan = self.scheduler.plan(self._max_tokens(now), now)
        for request, length in self._protection.riders(plan, self._most_rows(now), now):
            self.scheduler.take(plan, request, length, now)
        plan.arrange()
        self._see(now)
        return plan

    def _see(self, now: float) -> None:
        for request in self.scheduler.running:
            self._last_seen[request.priority] = now

    def _max_tokens(self, now: float) -> int:
        """Tokens of the next step: beside requests that decode, as long chunks of prompts as their deadlines allow.

        Where decoding alone misses them, a chunk may take as long again: else prompts would hardly move. Steps are
        kept as short when nobody decodes but requests of a higher priority came lately: the next one to come waits for
        one such step at most, not for the longest one.
        """
        foremost, most = self.scheduler.foremost(), self._most_rows(now)
        waiting = [r for r in foremost if r.decoding]
        if not waiting and not self._higher_expected(foremost, now):
            return most
        context = sum(len(r.tokens) for r in waiting)

        def seconds(rows: int) -> float:
            return self._predictor.decoding_seconds(len(waiting), context, rows)

        own = min((r.due(self.config) - now for r in waiting), default=self.config.itl_goal)
        goal = max(own, 2 * seconds(len(waiting)))
        return largest(min(most, len(waiting) + _SMALLEST_CHUNK), most, lambda rows: seconds(rows) <= goal)

    def _most_rows(self, now: float) -> int:
        return self._shortage.most_rows(self._least_rows(), now)

    def _least_rows(self) -> int:
        """That a step may have whatever memory there is: all who decode, and something of a prompt."""
        return sum(r.decoding for r in self.scheduler.running) + _SMALLEST_CHUNK

    def _higher_expected(self, foremost: Sequence[ActiveRequest], now: float) -> bool:
        """Whether requests of a higher priority than these ran within the last seconds."""
        highest = max((r.priority for r in foremost), default=0)
        return any(p > highest and now - seen < _EXPECTED_SECONDS for p, seen in self._last_seen.items())

    def _account(self, flight: Flight, whole: float, seconds: float) -> None:
        """Compare with the prediction, and book the time to inference (predicted: `whole`) and to training."""
        c, load, riding = self._counters, flight.load, flight.ride is not None
        c.predicted, c.measured = self._predictor.step_seconds(load, riding=riding), seconds
        self._predictor.observe(load, seconds, riding=riding)
        c.steps += 1
        if not riding and all(segment.kind == "decode" for segment in flight.plan.segments()):
            c.mbu += 0.05 * (self._predictor.mbu(load, seconds) - c.mbu)
        extra = seconds * max(0.0, 1 - whole / c.predicted) if riding else 0.0
        self._slack.spend(extra)
        c.training_seconds += extra
        c.inference_seconds += seconds - extra

    def _settle(self, plan: Plan, sampled: Sequence[Sampled | None]) -> None:
        """Move every request on by what was computed and chosen, and tell the callers.

        One that ended, or did not get its token, while a step ahead was on its way stays where it was.
        """
        now, tokens = time.perf_counter(), iter(sampled)
        for request, segment in plan.chosen:
            token = next(tokens) if segment.sample else None
            ended = self._requests.get(request.request.id) is not request
            if ended or segment.start != request.computed or (segment.sample and token is None):
                if segment.sample:
                    self.scheduler.take_back(request)
                continue
            request.computed += len(segment.tokens)
            if segment.kind == "prefill":
                self._counters.prompt_tokens += len(segment.tokens)
            if token is not None:
                self._emit(request, token, now)

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
        logprob = None
        if sampled is not None and sampled.logprob is not None:
            name = self.tokenizer.token_text
            top = tuple((token, name(token), value) for token, value in sampled.top)
            logprob = TokenLogprob(sampled.token_id, name(sampled.token_id), sampled.logprob, top)
        output = Output(
            request.request.id,
            sampled.token_id if sampled else None,
            text,
            reason,
            request.prompt_tokens,
            request.completion_tokens,
            logprob,
            error,
        )
        try:
            request.on_output(output)
        except Exception:
            log.exception("a caller's on_output raised; its request goes on")

    # ---- the slack --------------------------------------------------------------------------------------------

    def _ride(self, plan: Plan) -> Ride | None:
        """As many train tokens as the slack of this step pays for.

        Prompts leave none, as they wait for arithmetic; nor do lower priorities that got less than they could use.
        """
        if not takes_rides(self.decoder) or not self._background or self.scheduler.backlog or plan.short:
            return None
        segments, whole = plan.segments(), plan.alone + plan.grown
        budget = whole + self._allowance(plan, whole)
        most = self.config.max_batch_tokens - sum(len(s.tokens) for s in segments)
        return self._background.ride(largest(0, most, lambda rows: self._predictor.seconds(segments, rows) <= budget))

    def _allowance(self, plan: Plan, whole: float) -> float:
        """Seconds by which a step of `whole` seconds may grow for training's sake: what protects the highest priority
        from lower ones, less what these took."""
        if self.config.protect != "goals":
            return max(0.0, (self._slack.factor - 1) * plan.alone - plan.grown)
        now = time.perf_counter()
        first = min((request.due(self.config) for request in self.scheduler.protected()), default=now)
        return max(0.0, first - now - whole)

    def _launch_slices(self, flight: Flight) -> float:
        """Behind a step that is on its way, where the next one could be: so launching them costs the chip no time.

        No more than may be in flight: who waited for one of them would wait for the step. Returns their seconds.
        """
        plan = flight.plan
        if not self._background or self.scheduler.backlog or not self._runner.goes_ahead(plan):
            return 0.0
        seconds = self._due_seconds
        if self.config.protect == "goals":
            seconds = self._until_goals(plan, 2 * plan.alone)  # this step and the next
        return self._background.fill(seconds, lambda: self._background.full or self._somebody_came())

    def _use_slack(self, plan: Plan, whole: float, behind: float) -> None:
        """After a step of `whole` seconds of inference: slices, while the slack pays for them, and nobody comes.

        Not where the next step is on its way already: what is launched behind that cannot be taken back for whoever
        comes. They are due as soon as the slack pays for them, and then come before the next step.
        """
        begun, self._due_seconds = time.perf_counter(), 0.0
        seconds = self._slack_behind(plan, whole) if self._background and not self._stopping else 0.0
        spent = behind
        if self._flight is not None:
            self._due_seconds = seconds
        elif seconds > 0:

            def interrupted() -> bool:
                return self._somebody_came() or time.perf_counter() - begun >= seconds

            spent += self._background.fill(seconds - behind, interrupted)
        if spent:
            spent = max(spent, time.perf_counter() - begun)  # a GPU may have waited for launches
        self._counters.training_seconds += spent
        self._slack.spend(spent)

    def _slack_behind(self, plan: Plan, whole: float) -> float:
        """Seconds that slices may take now. None while prompts wait: whatever delays one delays all behind it."""
        if self.config.protect == "goals":
            return self._until_goals(plan, whole)
        self._slack.spend(plan.grown)
        smallest = self._background.smallest()
        if smallest is None:
            return 0.0
        seconds = self._slack.earn(whole, min(whole, self._decoding_seconds(plan)), smallest)
        return 0.0 if self.scheduler.backlog or plan.short else seconds

    def _until_goals(self, plan: Plan, whole: float) -> float:
        """Seconds that are left until the first deadline, less `whole` for the steps before it."""
        return 0.0 if self.scheduler.backlog or plan.short else MARGIN * self._allowance(plan, whole)

    def _decoding_seconds(self, plan: Plan) -> float:
        """What a step would take without its prompts; one of prompts alone, all of it."""
        decoding = [segment for segment in plan.segments() if segment.kind == "decode"]
        return self._predictor.seconds(decoding or plan.segments())

    def _somebody_came(self) -> bool:
        return not self._inbox.empty()

    def _run_idle_slice(self) -> bool:
        """Nobody is served: run a slice that a new request would hardly notice. False if there is nothing to do.

        A request comes, on average, in the middle of a slice: it waits for half of it, and on a GPU for the next one,
        which was launched already.
        """
        if not self._background:
            return False
        share = 0.1 if self.config.protect == "goals" else self._slack.factor - 1
        low, high = _IDLE_SLICE_LIMITS
        seconds = min(high, max(low, share * self._first_token_seconds / (self._background.depth - 0.5)))
        took = self._background.run(seconds, at_least_one=True)
        self._counters.training_seconds += took
        return took > 0

    # ---- requests, on the engine's own thread -----------------------------------------------------------------

    def _activate(self, request: Request, on_output: Callable[[Output], None]) -> ActiveRequest:
        """Check a request against the model, and give it what it needs to run."""
        adapter = self._adapters.get(request.model)
        if adapter is None and request.model != self.name:
            raise ModelNotFound(
                f"The model {request.model!r} does not exist; this server has {', '.join(self.models())}.",
                param="model",
            )
        vocab, length, params = self.decoder.config.vocab_size, len(request.prompt), request.params
        if not length:
            raise InvalidRequest("The prompt is empty; it must hold at least one token.", param="prompt")
        if not all(0 <= token < vocab for token in request.prompt):
            raise InvalidRequest(f"The prompt holds a token id outside 0..{vocab - 1}.", param="prompt")
        if not all(0 <= token < vocab for token in params.logit_bias):
            raise InvalidRequest(f"logit_bias names a token id outside 0..{vocab - 1}.", param="logit_bias")
        room = self.max_context - length
        if room < 1 or (params.max_tokens is not None and params.max_tokens > room):
            asked = f" and max_tokens asks for {params.max_tokens} more" if params.max_tokens else ""
            raise ContextLengthExceeded(
                f"This model's context is {self.max_context} tokens; the prompt has {length}{asked}. "
                "Shorten the prompt or lower max_tokens.",
                param="messages",
            )
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.tokenizer.eos_token_ids
        return ActiveRequest(
            request,
            adapter.layers if adapter else None,
            Detokenizer(self.tokenizer, params.stop),
            params.max_tokens or room,
            stop_ids,
            on_output,
            time.perf_counter(),
        )

    def _accept(self, request: ActiveRequest) -> None:
        with self._lock:
            self._submitted[request.request.priority] -= 1
        self._requests[request.request.id] = request
        self.scheduler.add(request)
        own = self._predictor.seconds([Segment("prefill", request.tokens, 0, (), sample=True)])
        self._first_token_seconds += 0.1 * (own - self._first_token_seconds)

    def _cancel(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            self._counters.cancelled += 1
            self._finish(request, "cancelled")

    def _expire(self) -> None:
        """End the requests that were not admitted within their time."""
        for request in self.scheduler.waiting.expired(time.perf_counter()):
            if request.request.id in self._requests:
                self._counters.expired += 1
                told = f"The request was not served within {request.request.queue_seconds:g} seconds; try again later."
                self._finish(request, "error", Unavailable(told))

    def _finish(self, request: ActiveRequest, reason: str, error: CoserveError | None = None) -> None:
        self._send(request, request.detokenizer.flush() if error is None else "", reason, error=error)
        self._forget(request)

    def _forget(self, request: ActiveRequest) -> None:
        self._requests.pop(request.request.id, None)
        self.scheduler.release(request)

    def _fail_all(self, error: Exception) -> None:
        told = error if isinstance(error, CoserveError) else CoserveError("The engine failed on this request.")
        for request in list(self._requests.values()):
            try:
                self._finish(request, "error", told)
            except Exception:  # half accepted: the thread must go on for all the others
                log.exception("a request that failed could not be forgotten")

    def _read_inbox(self) -> None:
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                return

    def _wait(self) -> None:
        """Until there is something in the inbox; now and then, so that the idle time counted is up to date."""
        started = time.perf_counter()
        with contextlib.suppress(queue.Empty):
            self._inbox.get(timeout=_IDLE_SECONDS)()
        self._counters.idle_seconds += time.perf_counter() - started

    # ---- sleep ------------------------------------------------------------------------------------------------

    def _between_steps(self, function: Callable[[], T]) -> T:
        """Run it on the engine's own thread, and wait for what it returns."""
        if threading.current_thread() is self._thread:
            return function()
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        with self._lock:
            if self._stopping:
                raise Unavailable("the engine is shutting down.")
            self._inbox.put(run)
        return done.result()

    def _fall_asleep(self) -> int:
        with self._awake:
            if self._offloaded is not None or self._stopping:
                return 0
            self._land_all()
            self._runner.forget()
            self._background.wait()
            device, weights, blocks = self.device, self.decoder.memory(), self._blocks_in_use()
            if is_gpu(device):
                self._offloaded = offload(weights, self.cache, blocks, device)
            else:
                self._offloaded = Offloaded((), device)
            return self._offloaded.device_bytes

    def _wake_up(self) -> None:
        with self._awake:
            if self._offloaded is not None:
                self._offloaded.restore()
                self._offloaded = None
                self._awake.notify_all()

    def _blocks_in_use(self) -> list[int]:
        """Of the KV cache: the requests', and those of background work, which may be in the middle of something."""
        requests = [block for request in self._requests.values() for block in request.blocks]
        return [*requests, *(self.train_blocks if self._background else ())]

    def _land_all(self) -> None:
        """No step is on its way."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._land(flight)

    # ---- start ------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        blocks = range(self.scheduler.pool.total)  # nobody's yet
        most = min(self.config.max_batch_tokens, len(blocks) * BLOCK_SIZE)
        self._runner.warm_up(blocks, most, self._predictor.observe)

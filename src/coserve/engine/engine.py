"""The engine: one thread that steps. Spoken to through `submit`, `cancel` and `attach`; answers through callbacks."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from coserve.engine.active import ActiveRequest, activate
from coserve.engine.background import BackgroundWork
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.blocks import BlockPool, blocks_for
from coserve.engine.cache_size import cache_tokens
from coserve.engine.co_serving import CoServing
from coserve.engine.config import EngineConfig
from coserve.engine.inbox import Inbox
from coserve.engine.plan import Plan
from coserve.engine.predictor import Predictor
from coserve.engine.request import Output, Request, SamplingParams
from coserve.engine.requests import Requests
from coserve.engine.runner import Flight, make_runner, takes_rides
from coserve.engine.scheduler import Scheduler
from coserve.engine.sleep import Sleep
from coserve.engine.stats import Counters, EngineStats
from coserve.engine.steps import Steps
from coserve.errors import InvalidRequest, ModelNotFound, OutOfMemory, ShuttingDown, Unavailable
from coserve.kernels import BLOCK_SIZE
from coserve.kernels.calibration import load_or_measure_chip
from coserve.kernels.device import choose_device
from coserve.kernels.memory import keep_freed_memory
from coserve.models.adapter import Adapter, load_adapter
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.generation import GenerationConfig
from coserve.models.hub import BUILTIN, resolve_model
from coserve.models.tokenizer import Tokenizer
from coserve.roofline import Estimator, Roofline

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_IDLE_SECONDS = 0.25  # between two looks at the clock while there is nothing to do
_NO_MEMORY = (
    "The GPU's memory does not suffice for a step of {} tokens. Lower max_batch_tokens or max_num_seqs, so that steps "
    "are smaller, or kv_cache_tokens, so that they have more room; or end what else uses the GPU."
)
_NO_MEMORY_TO_TRAIN = (
    "The GPU's memory does not suffice to serve and to train. Lower the job's micro_batch_tokens or max_length, or the "
    "server's kv_cache_tokens; or end what else uses the GPU."
)


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
        rides = takes_rides(decoder)
        serving = blocks_for(cache_tokens(decoder, self.config))
        training = blocks_for(self.config.train_tokens) if rides else 0
        self.cache = decoder.new_cache(serving + training + 1)
        self.train_blocks = list(range(serving, serving + training))
        self.max_context = min(decoder.max_positions, serving * BLOCK_SIZE)
        self.scheduler = Scheduler(self.config, BlockPool(serving))
        self._runner = make_runner(
            decoder,
            self.cache,
            rows=self.config.max_num_seqs,
            blocks=blocks_for(self.max_context),
            scratch=serving + training,
        )
        self._warm_up()
        self._inbox = Inbox()
        # Requests handed over but not yet in the scheduler, by priority; guarded by _lock.
        self._submitted: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._adapters: dict[str, Adapter] = {}
        self._counters = Counters()
        self._requests = Requests(self.scheduler, tokenizer, self._counters)
        self._steps = Steps(self.config, self.scheduler, self._predictor, self._runner)
        self._flight: Flight | None = None  # a step that was launched ahead, before the one before it had landed
        self._background = BackgroundQueue.on(decoder.device, self.estimator)
        self._co_serving = CoServing(
            self.config,
            self.scheduler,
            self._predictor,
            self._runner,
            self._background,
            rides=rides,
            somebody_came=self._somebody_came,
        )
        self._sleep = Sleep(decoder, self.cache)
        self._thread = threading.current_thread()

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
            # Those of lower priority do not count: a crowd of them keeps nobody out.
            ahead = self.scheduler.waiting.count_from(request.priority)
            ahead += sum(count for priority, count in self._submitted.items() if priority >= request.priority)
            if ahead >= self.config.max_waiting and not self._inbox.closed:
                raise Unavailable(
                    f"the queue is full ({self.config.max_waiting} requests wait already); try again shortly."
                )
            if not self._inbox.put(lambda: self._accept(active)):
                raise ShuttingDown
            self._submitted[request.priority] += 1

    def cancel(self, request_id: str) -> None:
        """End a request early; its last output says "cancelled". No effect on one that has ended."""
        self._inbox.put(lambda: self._requests.cancel(request_id))

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
        Raises `ModelError`, and `ShuttingDown` if the engine does meanwhile.
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
        return self._inbox.ask(self._fall_asleep)

    def wake(self) -> None:
        """Undo `sleep`; returns when the engine works again. Raises `Unavailable` if the GPU's memory is taken by
        another program; then it sleeps on."""
        self._inbox.ask(self._sleep.wake)

    def awake(self) -> AbstractContextManager[None]:
        """Within this the engine does not sleep: for other threads that take the device's memory.

        Waits for `wake` while it sleeps. Keep it short, and wait for no step within. Raises `ShuttingDown` if the
        engine does.
        """
        return self._sleep.awake()

    @property
    def asleep(self) -> bool:
        return self._sleep.asleep

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
        if self._inbox.close():
            self._sleep.end()
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # ---- the loop, on the engine's own thread -----------------------------------------------------------------

    def _loop(self) -> None:
        while not self._inbox.closed:
            try:
                self._inbox.read()
                self._requests.expire()
                if self.asleep:
                    self._wait()
                elif self._flight is not None or self.scheduler.has_work:
                    self.step()
                elif not self._run_idle_slice():
                    self._wait()
            except Exception as error:
                log.exception("a step failed; all requests end with an error")
                self._flight = None
                self._requests.fail_all(error)
        while not self._inbox.empty:  # nobody shall wait for an answer
            try:
                self._inbox.read()
            except Exception:
                log.exception("something that was asked of an engine which ends has failed")
        self._requests.finish_all("cancelled")

    def step(self) -> None:
        """One forward pass: the highest priority, who may ride along of the others, train tokens; then the slack."""
        flight = self._flight or self._launch()
        if flight is None:
            return
        behind = self._co_serving.launch_behind(flight.plan)
        self._flight = None if behind or self._somebody_came() else self._steps.launch_ahead(flight.plan)
        self._land(flight, behind)

    def _launch(self) -> Flight | None:
        """The next step; None if it found no memory. Then something has given way, and the step after it is another."""
        plan = self._steps.plan(time.perf_counter())
        flight = self._steps.launch(plan, self._co_serving.ride(plan))
        if flight is None:
            self._give_way(plan)
        return flight

    def _give_way(self, plan: Plan) -> None:
        """Make room for a step that found no memory: by what can be made again, then by smaller steps, then by a job,
        and only then by requests, those whose prompts are in the step before those that decode."""
        size = self._steps.size
        gave = self._background.give_way()
        self._runner.give_way()
        if size.shortage.try_again() or gave:
            return
        prompts = [request for request, _ in plan.chosen if not request.decoding]
        if prompts and size.shortage.make_smaller(plan.rows, size.least_rows(), time.perf_counter()):
            return
        if self._background.end_first(OutOfMemory(_NO_MEMORY_TO_TRAIN)):
            return
        told = OutOfMemory(_NO_MEMORY.format(plan.rows))
        log.error("requests fail for want of memory: %s", told)
        for request in prompts or [request for request, _ in plan.chosen]:
            self._requests.finish(request, "error", told)

    def _land(self, flight: Flight, behind: float = 0.0) -> None:
        """Wait for a step; slices of so many seconds were launched behind it."""
        landed = flight.land()
        if flight.ride is not None:
            self._background.rode(flight.ride)
        plan = flight.plan
        whole = plan.alone + plan.grown
        self._account(flight, whole, landed.seconds)
        self._requests.settle(plan, landed.sampled)
        ahead = self._flight is not None
        spent = self._co_serving.use_slack(plan, min(whole, landed.seconds), behind=behind, ahead=ahead)
        self._counters.training_seconds += spent

    def _account(self, flight: Flight, whole: float, seconds: float) -> None:
        """Compare with the prediction, and book the time to inference (predicted: `whole`) and to training."""
        c, load, riding = self._counters, flight.load, flight.ride is not None
        c.predicted, c.measured = self._predictor.step_seconds(load, riding=riding), seconds
        self._predictor.observe(load, seconds, riding=riding)
        c.steps += 1
        if not riding and all(segment.kind == "decode" for segment in flight.plan.segments()):
            c.mbu += 0.05 * (self._predictor.mbu(load, seconds) - c.mbu)
        extra = seconds * max(0.0, 1 - whole / c.predicted) if riding else 0.0
        self._co_serving.pay(extra)
        c.training_seconds += extra
        c.inference_seconds += seconds - extra

    def _run_idle_slice(self) -> bool:
        """Nobody is served: some background work. False if there is none."""
        took = self._co_serving.run_idle_slice()
        self._counters.training_seconds += took
        return took > 0

    def _somebody_came(self) -> bool:
        return self._inbox.closed or not self._inbox.empty

    def _wait(self) -> None:
        """Until there is something in the inbox; now and then, so that the idle time counted is up to date."""
        started = time.perf_counter()
        self._inbox.wait(_IDLE_SECONDS)
        self._counters.idle_seconds += time.perf_counter() - started

    # ---- between two steps ------------------------------------------------------------------------------------

    def _activate(self, request: Request, on_output: Callable[[Output], None]) -> ActiveRequest:
        """On the caller's thread."""
        adapter = self._adapters.get(request.model)
        if adapter is None and request.model != self.name:
            raise ModelNotFound(
                f"The model {request.model!r} does not exist; this server has {', '.join(self.models())}.",
                param="model",
            )
        return activate(
            request,
            on_output,
            adapter=adapter.layers if adapter else None,
            tokenizer=self.tokenizer,
            vocab_size=self.decoder.config.vocab_size,
            max_context=self.max_context,
        )

    def _accept(self, request: ActiveRequest) -> None:
        with self._lock:
            self._submitted[request.priority] -= 1
        self._requests.accept(request)
        self._co_serving.heed(request.tokens)

    def _fall_asleep(self) -> int:
        if self.asleep or self._inbox.closed:
            return 0
        if self._flight is not None:
            flight, self._flight = self._flight, None
            self._land(flight)
        self._runner.forget()
        self._background.wait()
        # Background work may be in the middle of something.
        return self._sleep.begin([*self._requests.blocks(), *(self.train_blocks if self._background else ())])

    def _warm_up(self) -> None:
        blocks = range(self.scheduler.pool.total)  # nobody's yet
        most = min(self.config.max_batch_tokens, len(blocks) * BLOCK_SIZE)
        self._runner.warm_up(blocks, most, self._predictor.observe)

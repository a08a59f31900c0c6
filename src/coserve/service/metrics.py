"""/metrics: the engine's statistics and HTTP counters for Prometheus, with closed sets of labels."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from coserve.engine import Engine, EngineStats
    from coserve.engine import Histogram as Observed

METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"})
GONE = "499"  # the client left before there was a reply


TTFT_BOUNDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # seconds


class Metrics:
    """One registry for one service, so that several may live in a process."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(engine))
        self.http_requests = Counter(
            "coserve_http_requests",
            "HTTP requests answered",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.refusals = Counter(
            "coserve_refusals", "Requests refused for want of quota", ("tier", "limit"), registry=self._registry
        )
        ttft = Histogram(
            "coserve_tier_ttft_seconds",
            "Time to first token, from admission on",
            ("tier",),
            buckets=TTFT_BOUNDS,
            registry=self._registry,
        )
        self.tier_ttft = cache(ttft.labels)
        self.http_running = Gauge(
            "coserve_http_requests_running", "HTTP requests being answered", registry=self._registry
        )

    @property
    def registry(self) -> CollectorRegistry:
        """For those who count something of their own."""
        return self._registry

    def text(self) -> bytes:
        return generate_latest(self._registry)


class EngineCollector(Collector):
    """Asks the engine when it is asked itself; nothing is counted twice."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        return ()  # else registering would ask the engine already

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield _counter(
            "requests",
            "Requests that have ended",
            "outcome",
            {
                "finished": stats.requests_finished,
                "cancelled": stats.requests_cancelled,
                "expired": stats.requests_expired,
            },
        )
        yield _gauge(
            "requests_now",
            "Requests in the engine",
            "state",
            {
                "running": stats.requests_running,
                "waiting": stats.requests_waiting,
                "parked": stats.requests_parked,
            },
        )
        yield _counter(
            "tokens",
            "Tokens processed",
            "kind",
            {"prompt": stats.prompt_tokens, "output": stats.output_tokens, "training": stats.training_tokens},
        )
        yield _counter("seconds", "How the chip's time was used", "use", _uses(stats))
        yield GaugeMetricFamily("coserve_asleep", "1 while the engine sleeps", value=stats.asleep)
        yield CounterMetricFamily("coserve_steps", "Steps of the engine", value=stats.steps)
        yield CounterMetricFamily(
            "coserve_preemptions", "Requests that lost their KV blocks to others", value=stats.preemptions
        )
        yield _gauge(
            "kv_blocks",
            "Blocks of the KV cache",
            "state",
            {"used": stats.kv_blocks_used, "total": stats.kv_blocks_total},
        )
        yield GaugeMetricFamily("coserve_mbu", "Bytes a decode step must read / seconds / bandwidth", value=stats.mbu)
        yield _gauge(
            "step_seconds",
            "The last step's time",
            "kind",
            {"predicted": stats.predicted_step_seconds, "measured": stats.measured_step_seconds},
        )
        yield GaugeMetricFamily(
            "coserve_step_error_median",
            "Median of |predicted / measured - 1| of recent steps",
            value=stats.step_error_median,
        )
        yield _histogram("ttft_seconds", "Time to first token", stats.ttft)
        yield _histogram("itl_seconds", "Inter-token latency", stats.itl)


def _uses(stats: EngineStats) -> dict[str, float]:
    return {
        "inference": stats.inference_seconds,
        "training": stats.training_seconds,
        "idle": stats.idle_seconds,
    }


def _counter(name: str, text: str, label: str, values: dict[str, float]) -> Metric:
    family = CounterMetricFamily(f"coserve_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauge(name: str, text: str, label: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(f"coserve_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(name: str, text: str, histogram: Observed) -> Metric:
    """`counts` are those of the buckets between the bounds; Prometheus wants running totals up to +Inf."""
    buckets = []
    total = 0
    bounds = [*histogram.bounds, math.inf]
    for bound, count in zip(bounds, histogram.counts, strict=False):
        total += count
        buckets.append(("+Inf" if math.isinf(bound) else str(bound), total))
    if buckets and buckets[-1][0] != "+Inf":
        buckets.append(("+Inf", total))
    family = HistogramMetricFamily(f"coserve_{name}", text)
    family.add_metric([], buckets, sum_value=histogram.sum)
    return family


class Counted:
    """Middleware: counts requests by method, route and status; gives each an id that a client can quote."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        self._counter = cache(metrics.http_requests.labels)
        self._running = 0
        metrics.http_running.set_function(lambda: self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = GONE
        request_id = f"req_{secrets.token_hex(12)}".encode()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
            await send(message)

        self._running += 1
        try:
            await self.app(scope, receive, sending)
        finally:
            self._running -= 1
            route = getattr(scope.get("route"), "path", "unknown")  # the pattern, not what was asked for
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._counter(method, route, status).inc()

"""Upstreams in /metrics: requests by outcome, and which breakers are open. The labels' values are closed sets."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coserve.service.upstreams.failures import OUTCOMES, Outcome


class UpstreamMetrics(Collector):
    """`are_open` says of each upstream whether its breaker lets nothing through; it is asked when /metrics is."""

    def __init__(self, registry: CollectorRegistry, are_open: Callable[[], Mapping[str, bool]]):
        self._are_open = are_open
        requests = Counter(
            "coserve_upstream_requests", "Requests to upstreams", ("upstream", "outcome"), registry=registry
        )
        self._counter = cache(requests.labels)
        self._counts = Counts[tuple[str, Outcome]]()
        registry.register(self)

    def add(self, name: str) -> None:
        """An upstream that is shown from now on, be it with zeros."""
        for outcome in OUTCOMES:
            self._counter(name, outcome)

    def count(self, name: str, outcome: Outcome) -> None:
        self._counter(name, outcome).inc()
        self._counts[name, outcome] += 1

    def counts(self, name: str) -> dict[str, int]:
        """Those that are not zero, by outcome."""
        return {outcome: self._counts[name, outcome] for outcome in OUTCOMES if self._counts[name, outcome]}

    def describe(self) -> Iterable[Metric]:
        return ()  # else registering would ask already

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "coserve_upstream_breaker_open", "1 while an upstream is left alone", labels=["upstream"]
        )
        for name, is_open in self._are_open().items():
            family.add_metric([name], float(is_open))
        yield family

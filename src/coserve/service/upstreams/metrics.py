"""Upstreams in /metrics: requests by outcome, and which breakers are open. The labels' values are closed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coserve.service.upstreams.failures import OUTCOMES, Outcome


class UpstreamMetrics(Collector):
    """`is_open` says of an upstream whether its breaker lets nothing through; it is asked when /metrics is."""

    def __init__(self, names: Iterable[str], registry: CollectorRegistry, is_open: Callable[[str], bool]):
        self._names = list(names)
        self._is_open = is_open
        requests = Counter(
            "coserve_upstream_requests", "Requests to upstreams", ("upstream", "outcome"), registry=registry
        )
        self._counters = {
            (name, outcome): requests.labels(name, outcome) for name in self._names for outcome in OUTCOMES
        }
        self._counts = dict.fromkeys(self._counters, 0)
        registry.register(self)

    def count(self, name: str, outcome: Outcome) -> None:
        self._counters[name, outcome].inc()
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
        for name in self._names:
            family.add_metric([name], float(self._is_open(name)))
        yield family

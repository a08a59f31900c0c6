"""All upstreams of a server, and the way of a request to one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from random import Random
from typing import Any

from coserve.service.limits import LimitStore
from coserve.service.metrics import Metrics
from coserve.service.tasks import cancel
from coserve.service.upstreams.asking import Asking
from coserve.service.upstreams.config import (
    LOCAL,
    ModelConfig,
    UpstreamConfig,
    UpstreamsFile,
    cost_of,
    read_upstreams_and_keys,
)
from coserve.service.upstreams.failures import not_taken
from coserve.service.upstreams.health import watch
from coserve.service.upstreams.metrics import UpstreamMetrics
from coserve.service.upstreams.routing import Candidate, ranked
from coserve.service.upstreams.upstream import Upstream

GRACE = 60.0
"""Seconds for which a request that has an upstream in hand may still ask it, after it left the configuration."""


class Upstreams:
    """`open` it on the loop that serves. `keys` are those of the upstreams, by their names."""

    def __init__(self, content: UpstreamsFile, keys: Mapping[str, str], random: Random | None = None):
        self._content, self._keys = content, keys
        self._upstreams: dict[str, Upstream] = {}
        self._watchers: dict[Upstream, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.random = random or Random()

    def open(self, store: LimitStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = UpstreamMetrics(metrics.registry, self._are_open)
        self.replace(self._content, self._keys)

    def replace(self, content: UpstreamsFile, keys: Mapping[str, str]) -> None:
        """From now on these. What stays as it was keeps what is known of it; the rest ends after its last request."""
        upstreams = {name: self._kept(name, config, keys.get(name)) for name, config in content.upstreams.items()}
        gone = [upstream for upstream in self._upstreams.values() if upstreams.get(upstream.name) is not upstream]
        self._content, self._keys, self._upstreams = content, keys, upstreams
        for upstream in gone:
            self._watchers.pop(upstream).cancel()
            self._start(_end(upstream))

    def _kept(self, name: str, config: UpstreamConfig, key: str | None) -> Upstream:
        """The upstream of that name if it is the same as before, else a new one."""
        known = self._upstreams.get(name)
        if known is not None and known.config == config and self._keys.get(name) == key:
            return known
        from coserve.service.upstreams.client import Client  # aiohttp is for those who have upstreams

        client = Client(config, key)
        client.open()
        self._metrics.add(name)
        upstream = Upstream(name, config, client, self._store, self._metrics)
        self._watchers[upstream] = self._start(watch(upstream, self.random))
        return upstream

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        for task in list(self._tasks):
            await cancel(task)
        for upstream in self._upstreams.values():
            await upstream.client.close()

    def serves(self, model: str) -> bool:
        return model in self._content.models

    def models(self) -> dict[str, str]:
        """The models that go to upstreams, each with the name of the first."""
        via = {name: [u for u in model.via if u != LOCAL] for name, model in self._content.models.items()}
        return {name: upstreams[0] for name, upstreams in via.items() if upstreams}

    def model(self, name: str) -> ModelConfig:
        return self._content.models[name]

    def ranked(self, asking: Asking, completion_tokens: int, *, here: bool) -> list[str]:
        """The names of those to ask, in their order; `LOCAL` among them if it is one, and the model is served `here`.

        Raises `InvalidRequest` for a field of the request that it needs, and none of them takes.
        """
        model = self.model(asking.model)
        names = [name for name in model.via if name != LOCAL or here]
        refused = {name: asking.refused(self._upstreams[name].config) for name in names if name != LOCAL}
        able = [name for name in names if refused.get(name) is None]
        field = next(filter(None, refused.values()), None)
        if not able and field is not None and not (model.overflow and here):
            raise not_taken(asking.model, field)
        candidates = (self._candidate(name, asking, completion_tokens) for name in able)
        return [candidate.name for candidate in ranked(model, candidates, self.random)]

    def _candidate(self, name: str, asking: Asking, completion_tokens: int) -> Candidate:
        if name == LOCAL:
            return Candidate(LOCAL)
        upstream = self._upstreams[name]
        return Candidate(
            name,
            seconds_away=upstream.seconds_away,
            latency=upstream.latencies.of(asking.model, asking.stream),
            cost=cost_of(upstream.config.price_of(asking.model), asking.prompt_tokens, completion_tokens),
        )

    def named(self, name: str) -> Upstream:
        return self._upstreams[name]

    def state(self) -> dict[str, Any]:
        """For operators."""
        return {name: upstream.state() for name, upstream in self._upstreams.items()}

    def _are_open(self) -> dict[str, bool]:
        return {name: upstream.breaker.state == "open" for name, upstream in self._upstreams.items()}


async def _end(upstream: Upstream) -> None:
    """Close it when nobody needs it any more."""
    try:
        await asyncio.sleep(GRACE)
        while upstream.running:
            await asyncio.sleep(1)
    finally:
        await upstream.client.close()


def read_pool(named: Path | None, home: Path) -> Upstreams:
    """Those of the file as named, else of `home`'s, else none. Raises `InvalidRequest`."""
    return Upstreams(*read_upstreams_and_keys(named, home))

"""All upstreams of a server, and the way of a request to one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
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
    UpstreamsFile,
    cost_of,
    read_keys,
    read_upstreams,
    upstreams_path,
)
from coserve.service.upstreams.failures import not_taken
from coserve.service.upstreams.health import watch
from coserve.service.upstreams.metrics import UpstreamMetrics
from coserve.service.upstreams.routing import Candidate, ranked
from coserve.service.upstreams.upstream import Upstream


class Upstreams:
    """`open` it on the loop that serves. `keys` are those of the upstreams, by their names."""

    def __init__(self, content: UpstreamsFile, keys: Mapping[str, str], random: Random | None = None):
        self._content, self._keys = content, keys
        self._upstreams: dict[str, Upstream] = {}
        self._open = AsyncExitStack()
        self.random = random or Random()

    async def open(self, store: LimitStore, metrics: Metrics) -> None:
        if not self._content.upstreams:
            return
        from coserve.service.upstreams.client import Client  # aiohttp is for those who have upstreams

        counters = UpstreamMetrics(self._content.upstreams, metrics.registry, self._is_open)
        for name, config in self._content.upstreams.items():
            client = Client(config, self._keys.get(name))
            await client.open()
            self._open.push_async_callback(client.close)
            upstream = Upstream(name, config, client, store, counters)
            self._upstreams[name] = upstream
            self._open.push_async_callback(cancel, asyncio.create_task(watch(upstream, self.random)))

    async def close(self) -> None:
        await self._open.aclose()

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

    def named(self, names: Iterable[str]) -> list[Upstream]:
        return [self._upstreams[name] for name in names]

    def state(self) -> dict[str, Any]:
        """For operators."""
        return {name: upstream.state() for name, upstream in self._upstreams.items()}

    def _is_open(self, name: str) -> bool:
        return self._upstreams[name].breaker.state == "open"


def read_pool(named: Path | None, home: Path) -> Upstreams:
    """Those of the file as named, else of `home`'s, else none. Raises `InvalidRequest`."""
    content = read_upstreams(upstreams_path(named, home))
    return Upstreams(content, read_keys(content))

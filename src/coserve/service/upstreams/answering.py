"""The way of a request for a model that goes to upstreams: to them, or here, and from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.responses import Response

from coserve.errors import Unavailable
from coserve.service.admission import Wish
from coserve.service.auth.keys import Key
from coserve.service.sampling import check_choices
from coserve.service.upstreams.asking import Asking
from coserve.service.upstreams.attempts import Attempts, TurnBack
from coserve.service.upstreams.config import LOCAL
from coserve.service.upstreams.either import Either, Making
from coserve.service.upstreams.relay import Relay

if TYPE_CHECKING:
    from coserve.service.service import Service

TTFT_GOAL = 1.0
"""Seconds, for tiers that have no goal of their own; as the engine's."""
PARAMS = {"chat": "messages", "completions": "prompt"}


async def answer(service: Service, key: Key, asking: Asking, service_tier: str | None, here: Making) -> Response:
    """`here` makes the reply of this server's own engine.

    Raises: `InvalidRequest`; the reply raises what a `Passage` raises, `UpstreamFailed`, `UpstreamsBusy`, `Rejected`.
    """
    return await _Way(service, key, asking, service_tier).reply(here)


def prepare_relay(service: Service, key: Key, asking: Asking, *, batch_id: str, usage_id: str) -> Relay:
    """A batch's request, for upstreams alone. Raises `InvalidRequest` and what `Admission.passage` raises."""
    return _Way(service, key, asking, None, batch_id, usage_id).elsewhere()


class _Way:
    """Raises `InvalidRequest` for more choices than one request may ask for."""

    def __init__(
        self,
        service: Service,
        key: Key,
        asking: Asking,
        service_tier: str | None,
        batch_id: str | None = None,
        usage_id: str | None = None,
    ):
        check_choices(len(asking.prompts), asking.n, service.settings.max_choices)
        self._service, self._key, self._asking, self._service_tier = service, key, asking, service_tier
        self._batch_id, self._usage_id = batch_id, usage_id
        self._model = service.upstreams.model(asking.model)
        expected = service.admission.estimates.completion(key.project.id, asking.model, asking.max_tokens or 1 << 20)
        self._completion = expected * asking.n * len(asking.prompts)  # tokens, estimated

    async def reply(self, here: Making) -> Response:
        before, own_engine, after = self._order()
        if not own_engine:
            return await self._there(before)
        if before:
            return Either(lambda: self._there(before, then_here=True), here, TurnBack)
        if after:
            return Either(here, lambda: self._there(after), Unavailable)
        return await here()

    def elsewhere(self) -> Relay:
        before, _, after = self._order()
        return self._relay([*before, *after])

    def _order(self) -> tuple[list[str], bool, list[str]]:
        """The upstreams before this server's own engine, whether it has a turn, and those after it."""
        served_here = self._asking.model in self._service.engine.models()
        names = self._service.upstreams.ranked(self._asking, self._completion, here=served_here)
        # those that are there now: when their turn comes, the configuration may be another
        self._upstreams = {name: self._service.upstreams.named(name) for name in names if name != LOCAL}
        if self._model.overflow and served_here:
            names = [LOCAL, *names] if self._service.overflow.keeps(self._goal()) else [*names, LOCAL]
        if LOCAL not in names:
            return names, not names, []
        place = names.index(LOCAL)
        return names[:place], True, names[place + 1 :]

    def _goal(self) -> float:
        """Seconds to the first token that the key's tier promises."""
        tiers = self._service.tiers
        terms = tiers.terms(self._key.tier or tiers.highest, self._service_tier, self._key.up_to)
        return terms.goals.ttft or TTFT_GOAL

    async def _there(self, names: Sequence[str], *, then_here: bool = False) -> Response:
        return self._relay(names, then_here=then_here).response()

    def _relay(self, names: Sequence[str], *, then_here: bool = False) -> Relay:
        asking, service = self._asking, self._service
        wish = Wish(
            asking.endpoint,
            asking.model,
            asking.prompt_tokens,
            max(asking.prompts),
            asking.n * len(asking.prompts),
            asking.max_tokens,
            self._service_tier,
            param=PARAMS[asking.endpoint],
            batch_id=self._batch_id,
            usage_id=self._usage_id,
        )
        passage = service.admission.passage(self._key, wish, upstream=names[0])
        attempts = Attempts(
            asking.model,
            [self._upstreams[name] for name in names],
            service.upstreams.random,
            rounds=self._model.rounds,
            then_here=then_here,
        )
        return Relay(asking, passage, attempts, asking.prompt_tokens + self._completion)

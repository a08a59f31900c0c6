"""Tiers: classes of service, each with its priority, latency goals, limits and prices. One YAML file, checked whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from coserve.errors import InvalidRequest
from coserve.service.yaml_file import LARGEST, Number, Part, Seconds, find_file, read_file

FILE = "tiers.yaml"
STANDARD = ("auto", "default", "scale")  # OpenAI's words for: the key's own tier
FLEX, PRIORITY, BATCH = "flex", "priority", "batch"
RESERVED = (*STANDARD, FLEX, PRIORITY, BATCH)


def _usd(value: Any) -> Decimal:
    try:
        return Decimal(str(value))
    except InvalidOperation:
        raise ValueError("must be a number") from None


Usd = Annotated[Decimal, BeforeValidator(_usd), Field(ge=0, le=10**6, allow_inf_nan=False)]
Priority = Annotated[int, Field(ge=-(10**6), le=10**6)]


class Price(Part):
    """USD a million tokens."""

    input: Usd = Decimal(0)
    cached_input: Usd | None = None  # None: as `input`
    output: Usd = Decimal(0)

    def times(self, factor: Decimal) -> Price:
        cached = None if self.cached_input is None else self.cached_input * factor
        return Price(input=self.input * factor, cached_input=cached, output=self.output * factor)


class FineTuning(Part):
    concurrent_jobs: Annotated[int | None, Field(ge=0, le=LARGEST)] = None
    tokens_per_day: Number = None
    price: Usd = Decimal(0)  # a million trained tokens


class Batches(Part):
    requests: Number = None  # of one batch
    open_batches: Number = None  # that are not over
    tokens_per_day: Number = None


class Files(Part):
    bytes: Number = None  # of all that a project keeps


class Limits(Part):
    """How much a project may ask for. None: as much as it likes."""

    requests_per_minute: Number = None
    requests_per_day: Number = None
    tokens_per_minute: Number = None
    tokens_per_day: Number = None
    concurrent_requests: Number = None

    def overridden(self, own: Mapping[str, int | None]) -> Limits:
        """With a project's own limits in the place of the tier's."""
        if not own:
            return self
        known = {name: value for name, value in own.items() if name in Limits.model_fields}
        return Limits(**{**{name: getattr(self, name) for name in Limits.model_fields}, **known})


class Tier(Limits):
    priority: Priority = 0  # higher goes first
    requestable: bool = True  # by keys of other tiers; else only by those whose `up_to` names it
    context: Number = None  # tokens of a prompt with its completion
    models: tuple[str, ...] = ("*",)  # names; "*" is all
    ttft: Seconds | None = None  # goals, seconds; None: the engine's
    itl: Seconds | None = None
    queue: Seconds | None = None  # waiting time after which a request is refused
    price: Price = Price()
    fine_tuning: FineTuning = FineTuning()
    batch: Batches = Batches()
    files: Files = Files()


class Discount(Part):
    priority: Priority
    price_factor: Annotated[Usd, Field(le=1)] = Decimal("0.5")


def _tier_name(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"a tier cannot be called {name!r}, which requests ask for in another sense")
    return name


Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_tier_name)]


class TiersFile(Part):
    tiers: Annotated[dict[Name, Tier], Field(min_length=1)]
    flex: Discount = Discount(priority=-10)
    batch: Discount = Discount(priority=-20)

    @cached_property
    def highest(self) -> str:
        return max(self.tiers, key=lambda name: self.tiers[name].priority)


@dataclass(frozen=True)
class Terms:
    """What a request gets: a tier, perhaps at other terms than its own."""

    tier: str  # whose limits and goals hold
    named: str  # what the reply calls it
    priority: int
    price: Price
    goals: Tier


class Tiers:
    """The tiers in force. `replace` swaps them in one assignment: requests under way keep their terms."""

    def __init__(self, content: TiersFile):
        self._content = content

    def replace(self, content: TiersFile) -> None:
        self._content = content

    @property
    def content(self) -> TiersFile:
        return self._content

    @property
    def names(self) -> list[str]:
        return list(self._content.tiers)

    @property
    def highest(self) -> str:
        return self._content.highest

    @property
    def _safest(self) -> str:
        """The lowest of those that anybody may ask for, if there is one."""
        tiers = self._content.tiers
        return min(tiers, key=lambda name: (not tiers[name].requestable, tiers[name].priority))

    def find(self, name: str, param: str = "tier") -> Tier:
        """Raises `InvalidRequest` that lists the tiers."""
        tier = self._content.tiers.get(name)
        if tier is None:
            raise InvalidRequest(f"There is no tier {name!r}; there are {', '.join(self.names)}.", param=param)
        return tier

    def terms(self, own: str, asked: str | None, up_to: str | None = None) -> Terms:
        """The terms of a request by a key of tier `own`, which may go up to the tier `up_to` when it asks.

        Raises `InvalidRequest` for a tier that there is not, or that the key may not ask for.
        """
        if own not in self._content.tiers:  # the file was changed since the key was made
            own = self._safest
        tier = self._content.tiers[own]
        if asked is None or asked in STANDARD or asked == own:
            return Terms(own, "default", tier.priority, tier.price, tier)
        if asked == FLEX:
            return self._discounted(own, FLEX, self._content.flex)
        highest = up_to if up_to in self._content.tiers else own
        wanted = highest if asked == PRIORITY else asked
        found = self.find(wanted, "service_tier")
        if found.priority > self._content.tiers[highest].priority or (asked == PRIORITY and highest == own):
            raise InvalidRequest(
                f"'service_tier': this key may not ask for {asked!r}; its tier is {own!r}.", param="service_tier"
            )
        if not (found.requestable or wanted == up_to):
            raise InvalidRequest(
                f"'service_tier': the tier {wanted!r} is not open to requests; this key's tier is {own!r}.",
                param="service_tier",
            )
        return Terms(wanted, asked, found.priority, found.price, found)

    def batch_terms(self, own: str) -> Terms:
        """Those of a batch's requests."""
        return self._discounted(self.terms(own, None).tier, BATCH, self._content.batch)

    def _discounted(self, own: str, named: str, discount: Discount) -> Terms:
        tier = self._content.tiers[own]
        price = tier.price.times(discount.price_factor)
        return Terms(own, named, min(discount.priority, tier.priority), price, tier)


def read_tiers(path: Path | None) -> TiersFile:
    """The file's tiers, or coserve's own for None. Raises `InvalidRequest` naming the file and the field."""
    return read_file(path or files("coserve.service") / FILE, TiersFile, "tiers")


def tiers_path(named: Path | None, home: Path) -> Path | None:
    """The file to read; None for coserve's own."""
    return find_file(named, home, FILE)

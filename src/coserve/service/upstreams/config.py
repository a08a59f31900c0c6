"""upstreams.yaml: which servers there are, and which models they serve. Checked whole before anything starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from coserve.errors import InvalidRequest
from coserve.service.tiers import Price
from coserve.service.yaml_file import Number, Part, Seconds, find_file, read_file

FILE = "upstreams.yaml"
LOCAL = "local"
"""What `via` calls this server's own engine."""
Routing = Literal["order", "weight", "latency", "cost"]


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{value!r} is no http(s) address such as https://api.example.com/v1")
    if parts.username or parts.password:
        raise ValueError("it must not hold a user or a password; keys come from the environment (api_key_env)")
    return value.rstrip("/")


def _name(value: str) -> str:
    if value == LOCAL or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError(f"{value!r} is no name for an upstream: letters, digits, '.', '-' and '_', and not {LOCAL!r}")
    return value


Url = Annotated[str, AfterValidator(_base_url)]
UpstreamName = Annotated[str, AfterValidator(_name)]


class Timeout(Part):
    """Seconds."""

    connect: Seconds = 2.0
    first_token: Seconds = 30.0  # of a stream; a whole reply may take `whole`
    idle: Seconds = 30.0  # between two pieces of a stream
    whole: Seconds = 300.0


class Breaking(Part):
    """When an upstream is left alone: after `failures` in a row, or a `share` of a window's requests."""

    failures: Annotated[int, Field(gt=0)] = 5
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    window: Seconds = 30.0
    requests: Annotated[int, Field(gt=0)] = 20  # a window with fewer says nothing
    pause: Seconds = 1.0  # before the first probe; doubled by each probe that fails
    longest_pause: Seconds = 60.0


class Served(Part):
    """A model as an upstream knows it."""

    name: str
    price: Price | None = None  # None: the upstream's


def _served(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class UpstreamConfig(Part):
    base_url: Url
    api_key_env: str | None = None  # the environment's variable that holds the key; None: no key
    # those with another name or price there
    models: dict[str, Annotated[Served, BeforeValidator(_served)]] = Field(default_factory=dict)
    refuses: tuple[str, ...] = ()  # fields of a request that it does not take
    service_tier: str | None = None  # what it is asked for; the client's word is for this server
    send_user: bool = False  # whether it learns the client's `user`
    price: Price = Price()  # what it costs us
    requests_per_minute: Number = None
    tokens_per_minute: Number = None
    concurrent_requests: Number = None
    connections: Annotated[int, Field(gt=0)] = 256
    timeout: Timeout = Timeout()
    breaker: Breaking = Breaking()
    health_interval: Seconds = 10.0

    def name_of(self, model: str) -> str:
        return self.models[model].name if model in self.models else model

    def price_of(self, model: str) -> Price:
        own = self.models[model].price if model in self.models else None
        return own or self.price


class ModelConfig(Part):
    via: Annotated[tuple[str, ...], Field(min_length=1)]
    routing: Routing = "order"
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    overflow: bool = False  # this server's own engine first, as long as it keeps the tier's TTFT goal
    rounds: Annotated[int, Field(ge=1, le=10)] = 2  # how often each upstream may be tried

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if len(set(self.via)) < len(self.via):
            raise ValueError("'via' names one upstream twice")
        if self.weights and self.routing != "weight":
            raise ValueError("'weights' are for 'routing: weight'")
        if self.routing == "weight" and set(self.weights) != set(self.via):
            raise ValueError(f"'weights' must give one for each of {', '.join(self.via)}")
        if self.overflow and LOCAL in self.via:
            raise ValueError(f"with 'overflow', {LOCAL!r} is first anyway: leave it out of 'via'")
        return self


class UpstreamsFile(Part):
    upstreams: dict[UpstreamName, UpstreamConfig] = Field(default_factory=dict)
    models: dict[str, ModelConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> UpstreamsFile:
        for name, model in self.models.items():
            for upstream in model.via:
                if upstream != LOCAL and upstream not in self.upstreams:
                    there = ", ".join(self.upstreams) or "none"
                    raise ValueError(f"models.{name}.via: there is no upstream {upstream!r}; there are {there}")
        for name, config in self.upstreams.items():
            for known in config.models:
                if name not in getattr(self.models.get(known), "via", ()):
                    raise ValueError(f"upstreams.{name}.models: {known!r} does not go via {name!r}: see 'models'")
        return self


def read_upstreams(path: Path | None) -> UpstreamsFile:
    """The file's content; that of an empty file for None. Raises `InvalidRequest` naming the file and the field."""
    return UpstreamsFile() if path is None else read_file(path, UpstreamsFile, "upstreams")


def upstreams_path(named: Path | None, home: Path) -> Path | None:
    """The file to read; None if there is none."""
    return find_file(named, home, FILE)


def read_keys(content: UpstreamsFile, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Each upstream's key. Raises `InvalidRequest` that names all variables that are missing, and never a key."""
    wanted = {name: upstream.api_key_env for name, upstream in content.upstreams.items() if upstream.api_key_env}
    keys = {name: environment.get(variable, "").strip() for name, variable in wanted.items()}
    missing = [f"{wanted[name]} (for {name!r})" for name, key in keys.items() if not key]
    if missing:
        raise InvalidRequest(f"Set {', '.join(missing)}: upstreams' keys are read from there.", param="upstreams")
    return keys


def read_upstreams_and_keys(named: Path | None, home: Path) -> tuple[UpstreamsFile, dict[str, str]]:
    """Of the file as named, else of `home`'s, else none. Raises `InvalidRequest`."""
    content = read_upstreams(upstreams_path(named, home))
    return content, read_keys(content)


def cost_of(price: Price, prompt_tokens: int, completion_tokens: int) -> Decimal:
    """Millionths of a USD."""
    return price.input * prompt_tokens + price.output * completion_tokens

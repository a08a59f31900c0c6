"""upstreams.yaml: which servers there are, and which models they serve. Checked whole before anything starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from coserve.errors import InvalidRequest
from coserve.planner.quantities import seconds
from coserve.service.tiers import Price

FILE = "upstreams.yaml"
LOCAL = "local"
"""What `via` calls this server's own engine."""
Routing = Literal["order", "weight", "latency", "cost"]


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return seconds(value, "time")
    except InvalidRequest as error:
        raise ValueError(error.message) from None


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


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, allow_inf_nan=False)]
Number = Annotated[int | None, Field(gt=0)]
Url = Annotated[str, AfterValidator(_base_url)]
UpstreamName = Annotated[str, AfterValidator(_name)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timeout(_Part):
    """Seconds."""

    connect: Seconds = 2.0
    first_token: Seconds = 30.0  # of a stream; a whole reply may take `whole`
    idle: Seconds = 30.0  # between two pieces of a stream
    whole: Seconds = 300.0


class Breaking(_Part):
    """When an upstream is left alone: after `failures` in a row, or a `share` of a window's requests."""

    failures: Annotated[int, Field(gt=0)] = 5
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    window: Seconds = 30.0
    requests: Annotated[int, Field(gt=0)] = 20  # a window with fewer says nothing
    pause: Seconds = 1.0  # before the first probe; doubled by each probe that fails
    longest_pause: Seconds = 60.0


class Served(_Part):
    """A model as an upstream knows it."""

    name: str
    price: Price | None = None  # None: the upstream's


def _served(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class UpstreamConfig(_Part):
    base_url: Url
    api_key_env: str | None = None  # the environment's variable that holds the key; None: no key
    models: dict[str, Annotated[Served, BeforeValidator(_served)]] = {}  # those with another name or price there
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


class ModelConfig(_Part):
    via: Annotated[tuple[str, ...], Field(min_length=1)]
    routing: Routing = "order"
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
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


class UpstreamsFile(_Part):
    upstreams: dict[UpstreamName, UpstreamConfig] = {}
    models: dict[str, ModelConfig] = {}

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
    if path is None:
        return UpstreamsFile()
    try:
        return UpstreamsFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise InvalidRequest(f"Cannot read {path}: {error.strerror}.", param="upstreams") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is not YAML: {' '.join(str(error).split())}", param="upstreams") from None
    except ValidationError as error:
        raise InvalidRequest(_explain(path, error), param="upstreams") from None


def _explain(path: Path, error: ValidationError) -> str:
    """One line for each mistake."""
    lines = []
    for mistake in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(step) for step in mistake["loc"] if step != "[key]")
        lines.append(f"{path}: {field + ': ' if field else ''}{mistake['msg'].removeprefix('Value error, ')}.")
    return "\n".join(lines)


def upstreams_path(named: Path | None, home: Path) -> Path | None:
    """The file to read: as named, else `home/upstreams.yaml` if it is there, else None."""
    if named is not None:
        return named.expanduser()
    own = home / FILE
    return own if own.is_file() else None


def read_keys(content: UpstreamsFile, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Each upstream's key. Raises `InvalidRequest` that names all variables that are missing, and never a key."""
    wanted = {name: upstream.api_key_env for name, upstream in content.upstreams.items() if upstream.api_key_env}
    keys = {name: environment.get(variable, "").strip() for name, variable in wanted.items()}
    missing = [f"{wanted[name]} (for {name!r})" for name, key in keys.items() if not key]
    if missing:
        raise InvalidRequest(f"Set {', '.join(missing)}: upstreams' keys are read from there.", param="upstreams")
    return keys


def cost_of(price: Price, prompt_tokens: int, completion_tokens: int) -> Decimal:
    """Millionths of a USD."""
    return price.input * prompt_tokens + price.output * completion_tokens

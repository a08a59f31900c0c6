"""What a client asks for, and the body that an upstream gets: as the client wrote it but for a few fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from coserve.errors import InvalidRequest
from coserve.service.compact import dumps
from coserve.service.upstreams.config import UpstreamConfig
from coserve.service.upstreams.counting import BYTES_A_TOKEN

if TYPE_CHECKING:
    from coserve.service.sampling import SamplingBody

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
HARMLESS = frozenset(
    {"user", "metadata", "store", "service_tier", "stream_options", "prompt_cache_key", "safety_identifier"}
)
"""Fields that do not change the answer: an upstream that refuses them does not get them."""
BOUNDS = {"chat": ("max_completion_tokens", "max_tokens"), "completions": ("max_tokens",)}
"""Fields that say how long a choice may be, the best first."""
AS_IF_ABSENT: Mapping[str, Any] = {
    "n": 1,
    "best_of": 1,
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "response_format": {"type": "text"},
}
"""Values that say what holds anyway; so do null, false, and empty lists and objects."""
LONGEST_NUMBER = 1000
"""Digits of a whole one."""


@dataclass(frozen=True)
class Asking:
    """One request. `raw` is the client's body, which has been checked; tokens of prompts are estimates."""

    endpoint: str  # "chat" or "completions"
    model: str
    raw: bytes
    prompts: tuple[int, ...]  # tokens
    n: int
    max_tokens: int | None
    stream: bool
    wants_usage: bool  # the client asked for it, at the end of its stream

    @classmethod
    def of(
        cls, endpoint: str, raw: bytes, body: SamplingBody, prompts: Sequence[str | list[int]], max_tokens: int | None
    ) -> Asking:
        return cls(
            endpoint=endpoint,
            model=body.model,
            raw=raw,
            prompts=tuple(_tokens(prompt) for prompt in prompts),
            n=body.n or 1,
            max_tokens=max_tokens,
            stream=bool(body.stream),
            wants_usage=body.include_usage,
        )

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompts)

    @property
    def path(self) -> str:
        return PATHS[self.endpoint]

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Raises `InvalidRequest` for NaN, infinity, and numbers too large to be passed on."""
        fields: dict[str, Any] = _DECODER.decode(self.raw.decode())
        return fields

    def refused(self, upstream: UpstreamConfig) -> str | None:
        """A field that the upstream does not take, and without which the answer would be another."""
        for name in upstream.refuses:
            if name in self.fields and name not in HARMLESS and not _says_nothing(name, self.fields[name]):
                return name
        return None

    def body_for(self, upstream: UpstreamConfig, most: int | None) -> bytes:
        """`most` tokens of a choice are allowed where the client wrote no bound; None: as many as it likes."""
        body = {name: value for name, value in self.fields.items() if name not in upstream.refuses}
        body["model"] = upstream.name_of(self.model)
        body.pop("service_tier", None)
        if upstream.service_tier is not None:
            body["service_tier"] = upstream.service_tier
        if not upstream.send_user:
            body.pop("user", None)
        if self.stream and "stream_options" not in upstream.refuses:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if most is not None and all(self.fields.get(name) is None for name in BOUNDS[self.endpoint]):
            taken = [name for name in BOUNDS[self.endpoint] if name not in upstream.refuses]
            body |= dict.fromkeys(taken[:1], most)
        return dumps(body)


def _tokens(prompt: str | list[int]) -> int:
    return max(1, len(prompt.encode(errors="replace")) // BYTES_A_TOKEN if isinstance(prompt, str) else len(prompt))


def _says_nothing(name: str, value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "") or AS_IF_ABSENT.get(name) == value


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _whole(text: str) -> int:
    return int(text) if len(text) <= LONGEST_NUMBER else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise InvalidRequest(f"The request's body is not valid JSON: {text[:20]} is no number.", code="invalid_json")


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite, parse_int=_whole)

"""What chat and plain completions have in common: the fields that say how to sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from coserve.engine import Request, SamplingParams
from coserve.errors import InvalidRequest
from coserve.service.admission import Passage
from coserve.service.bodies import Body

Count = Annotated[int, Field(ge=1, le=1 << 31)]
Int64 = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class StreamOptions(Body):
    include_usage: bool | None = None


class SamplingBody(Body):
    """The shared fields. Ranges that the engine knows are checked by `SamplingParams`."""

    model: str
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[TokenId, float] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    store: bool | None = None

    def sampling(self, defaults: Mapping[str, Any], *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """What the client said, else the model's own defaults, else the engine's.

        Raises: `InvalidRequest` with `param`.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is only for 'stream': true.", param="stream_options")
        chosen: dict[str, Any] = dict(defaults)
        for name in _PLAIN_FIELDS:
            value = getattr(self, name)
            if value is not None:
                chosen[name] = value
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            **chosen,
            max_tokens=max_tokens,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logprobs=logprobs,
        )

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


_PLAIN_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
)


def check_choices(prompts: int, n: int, limit: int) -> None:
    """Raises: `InvalidRequest` if `n` completions of each prompt are more than `limit`."""
    if prompts * n > limit:
        param = "prompt" if prompts > limit else "n"
        raise InvalidRequest(
            f"{prompts} prompts with n = {n} ask for {prompts * n} completions; "
            f"one request may ask for at most {limit}.",
            param=param,
        )


def choices(
    prompts: Sequence[Sequence[int]], params: SamplingParams, model: str, n: int, passage: Passage
) -> list[Request]:
    """`n` requests for each prompt, those of one prompt together; with a seed, each choice has its own."""
    several = [
        params if params.seed is None or i == 0 else replace(params, seed=_next_seed(params.seed, i)) for i in range(n)
    ]
    schedule = passage.schedule
    return [
        Request(tuple(prompt), replace(one, max_tokens=passage.max_tokens(len(prompt))), model, **schedule)
        for prompt in prompts
        for one in several
    ]


def _next_seed(seed: int, step: int) -> int:
    return (seed + step + (1 << 63)) % (1 << 64) - (1 << 63)

"""POST /v1/completions: text or token ids in, their continuation out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import Receive

from coserve.engine import Output, Request
from coserve.errors import InvalidRequest
from coserve.service.admission import Passage, Wish
from coserve.service.answer import Answer
from coserve.service.auth.door import key_of
from coserve.service.bodies import parse_json, read_body, unsupported
from coserve.service.compact import dumps
from coserve.service.ids import new_id, now
from coserve.service.logprobs import CompletionLogprobs
from coserve.service.sampling import SamplingBody, check_choices, choices
from coserve.service.sse import DONE, event
from coserve.service.upstreams.answering import answer
from coserve.service.upstreams.asking import Asking

if TYPE_CHECKING:
    from coserve.service.auth.keys import Key
    from coserve.service.service import Service

DEFAULT_MAX_TOKENS = 16  # OpenAI's, of old


def _prompts(value: Any) -> list[str | list[int]]:
    """Any of the four forms of `prompt` as a list of prompts, each a text or token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value) or all(_is_tokens(item) for item in value):
            return value
        if _is_tokens(value):
            return [value]
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class CompletionBody(SamplingBody):
    prompt: Annotated[Any, BeforeValidator(_prompts)]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most_tokens(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def asking(self, raw: bytes) -> Asking:
        """For upstreams; `raw` is the JSON of this body."""
        return Asking.of("completions", raw, self, self.prompt, self.most_tokens)

    def refuse_unsupported(self) -> None:
        if self.suffix:
            raise unsupported("suffix")
        if self.best_of not in (None, self.n or 1):
            raise unsupported("best_of", "'best_of' other than 'n'")
        if self.echo and self.logprobs is not None:
            raise unsupported("logprobs", "'logprobs' together with 'echo'")


async def create_completion(http: HTTPRequest) -> Response:
    service: Service = http.app.state.service
    raw = await read_body(http, service.settings.max_body_bytes)
    body = parse_json(raw, CompletionBody)
    here = partial(_complete_here, service, key_of(http), body)
    if not service.upstreams.serves(body.model):
        return await here()
    return await answer(service, key_of(http), body.asking(raw), body.service_tier, here)


async def _complete_here(service: Service, key: Key, body: CompletionBody) -> Response:
    return (await prepare_completion(service, key, body)).response(body.stream)


async def prepare_completion(
    service: Service, key: Key, body: CompletionBody, *, batch_id: str | None = None, usage_id: str | None = None
) -> Completion:
    """The answer to `body`, to be generated. Raises what is wrong with it, or not open to the key."""
    service.check_model(body.model, key)
    body.refuse_unsupported()
    params = body.sampling(service.sampling_defaults, max_tokens=body.most_tokens, logprobs=body.logprobs)
    size = sum(len(prompt) for prompt in body.prompt)
    prompts = await service.offload(size, _encode, service, body.prompt)
    n = body.n or 1
    check_choices(len(prompts), n, service.settings.max_choices)
    lengths = [len(prompt) for prompt in prompts]
    wish = Wish(
        "completions",
        body.model,
        sum(lengths),
        max(lengths),
        n * len(prompts),
        params.max_tokens,
        body.service_tier,
        param="prompt",
        batch_id=batch_id,
        usage_id=usage_id,
    )
    passage = service.admission.passage(key, wish)
    echoes = await service.offload(size, _echoes, service, body, prompts)
    requests = choices(prompts, params, body.model, n, passage)
    return Completion(service, body, prompts, requests, echoes, passage)


def _encode(service: Service, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    tokenizer, vocabulary = service.engine.tokenizer, service.engine.model_config.vocab_size
    encoded = []
    for prompt in prompts:
        tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if not tokens and tokenizer.bos_token_id is not None:
            tokens = [tokenizer.bos_token_id]
        if not tokens:
            raise InvalidRequest("The prompt is empty: it must have at least one token.", param="prompt")
        wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(
                f"{wrong} is no token of this model: ids go from 0 to {vocabulary - 1}.", param="prompt"
            )
        encoded.append(tokens)
    return encoded


def _echoes(service: Service, body: CompletionBody, prompts: list[list[int]]) -> list[str]:
    """The text before each prompt's completion: the prompt itself if it is to be echoed."""
    if not body.echo:
        return [""] * len(prompts)
    decode = service.engine.tokenizer.decode
    return [
        given if isinstance(given, str) else decode(tokens) for given, tokens in zip(body.prompt, prompts, strict=True)
    ]


@dataclass
class _Choice:
    logprobs: CompletionLogprobs
    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, output: Output) -> None:
        self.text.append(output.text)
        if output.logprob is not None:
            self.logprobs.add(output.logprob)
        self.finish_reason = output.finish_reason


class Completion(Answer):
    """One request's completions on their way: the same outputs, either collected or streamed."""

    def __init__(
        self,
        service: Service,
        body: CompletionBody,
        prompts: list[list[int]],
        requests: list[Request],
        echoes: list[str],
        passage: Passage,
    ):
        super().__init__(service, requests, passage, prompts)
        self._body = body
        self._echo = [echo for echo in echoes for _ in range(body.n or 1)]  # for each choice
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": now(),
            "model": body.model,
            "system_fingerprint": None,
        }

    def _choice(self, index: int, text: str, logprobs: CompletionLogprobs, finish_reason: str | None) -> dict[str, Any]:
        reported = logprobs.as_dict() if self._body.logprobs is not None else None
        return {"text": text, "index": index, "logprobs": reported, "finish_reason": finish_reason}

    async def whole(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        answers = [_Choice(CompletionLogprobs(), [echo]) for echo in self._echo]
        async with self.generation(receive) as generation:
            async for batch in self.batches(generation):
                for index, output in batch:
                    answers[index].add(output)
            listed = [
                self._choice(index, "".join(answer.text), answer.logprobs, answer.finish_reason)
                for index, answer in enumerate(answers)
            ]
            yield dumps({**self._head, "choices": listed, "usage": self._usage.as_dict()})
            self.sent()

    async def events(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        head = b"data: " + dumps(self._head)[:-1] + b',"choices":['
        tail = b'],"usage":null}\n\n' if self._body.include_usage else b"]}\n\n"
        echo = list(self._echo)
        offsets = [0] * len(self._requests)
        async with self.generation(receive) as generation:
            async for batch in self.batches(generation):
                piece = []
                for index, output in batch:
                    text, echo[index] = echo[index] + output.text, ""
                    if not text and output.logprob is None and output.finish_reason is None:
                        continue
                    logprobs = CompletionLogprobs(offsets[index])
                    if output.logprob is not None:
                        logprobs.add(output.logprob)
                    offsets[index] = logprobs.offset
                    piece.append(head + dumps(self._choice(index, text, logprobs, output.finish_reason)) + tail)
                if piece:
                    yield b"".join(piece)
                    self.sent()
            end = {**self._head, "choices": [], "usage": self._usage.as_dict()}
            yield event(end) + DONE if self._body.include_usage else DONE

"""POST /v1/chat/completions: a conversation in, an assistant's turn out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import Receive

from coserve.engine import Output, Request
from coserve.errors import InvalidRequest
from coserve.service.admission import Passage, Wish
from coserve.service.answer import Answer
from coserve.service.auth.door import key_of
from coserve.service.bodies import Body, parse_json, read_body, unsupported
from coserve.service.compact import dumps
from coserve.service.ids import new_id, now
from coserve.service.logprobs import chat_logprob
from coserve.service.sampling import Count, SamplingBody, check_choices, choices
from coserve.service.sse import DONE, event
from coserve.service.upstreams.answering import answer
from coserve.service.upstreams.asking import Asking

if TYPE_CHECKING:
    from coserve.service.auth.keys import Key
    from coserve.service.service import Service


class Part(Body):
    type: str
    text: str | None = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class ChatBody(SamplingBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    audio: Any = None
    modalities: Any = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def refuse_unsupported(self) -> None:
        """Raises `InvalidRequest` with `param` for what cannot be ignored without changing the meaning."""
        for name in ("tools", "functions", "audio"):
            if getattr(self, name):
                raise unsupported(name)
        for name in ("tool_choice", "function_call"):
            if getattr(self, name) not in (None, "none", "auto"):
                raise unsupported(name)
        if self.modalities not in (None, ["text"]):
            raise unsupported("modalities", "Any modality but text")
        if self.response_format not in (None, {"type": "text"}):
            kind = self.response_format.get("type") if isinstance(self.response_format, dict) else None
            raise unsupported("response_format", f"'response_format' of type {kind!r}")

    def asking(self, raw: bytes) -> Asking:
        """For upstreams; `raw` is the JSON of this body."""
        return Asking.of("chat", raw, self, [self._text()], self.most_tokens)

    def _text(self) -> str:
        """All that the messages say."""
        parts = [
            m.content if isinstance(m.content, str) else "".join(p.text or "" for p in m.content or ())
            for m in self.messages
        ]
        return "\n".join(parts)

    def turns(self) -> list[dict[str, Any]]:
        """The messages as chat templates know them: role and content as plain text."""
        return [_turn(message, f"messages[{i}]") for i, message in enumerate(self.messages)]

    def number_of_logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs is not None:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        return None


def _turn(message: Message, where: str) -> dict[str, Any]:
    if message.role in ("tool", "function"):
        raise unsupported(f"{where}.role", f"The role {message.role!r}")
    if message.tool_calls or message.function_call:
        name = "tool_calls" if message.tool_calls else "function_call"
        raise unsupported(f"{where}.{name}", "A message with tool calls")
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(f"'{where}.content' is required.", param=f"{where}.content")
    # templates know no "developer": it is OpenAI's newer word for the system's turn
    role = "system" if message.role == "developer" else message.role
    turn = {"role": role, "content": _text(message.content or "", f"{where}.content")}
    return {**turn, "name": message.name} if message.name else turn


def _text(content: str | list[Part], where: str) -> str:
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type != "text":
            raise unsupported(f"{where}[{i}].type", f"A content part of type {part.type!r}")
        if part.text is None:
            raise InvalidRequest(f"'{where}[{i}].text' is required.", param=f"{where}[{i}].text")
    return "".join(part.text or "" for part in content)


async def create_chat_completion(http: HTTPRequest) -> Response:
    service: Service = http.app.state.service
    raw = await read_body(http, service.settings.max_body_bytes)
    body = parse_json(raw, ChatBody)
    here = partial(_complete_here, service, key_of(http), body)
    if not service.upstreams.serves(body.model):
        return await here()
    return await answer(service, key_of(http), body.asking(raw), body.service_tier, here)


async def _complete_here(service: Service, key: Key, body: ChatBody) -> Response:
    return (await prepare_chat(service, key, body)).response(body.stream)


async def prepare_chat(
    service: Service, key: Key, body: ChatBody, *, batch_id: str | None = None, usage_id: str | None = None
) -> Chat:
    """The answer to `body`, to be generated. Raises what is wrong with it, or not open to the key."""
    service.check_model(body.model, key)
    body.refuse_unsupported()
    params = body.sampling(service.sampling_defaults, max_tokens=body.most_tokens, logprobs=body.number_of_logprobs())
    turns = body.turns()
    size = sum(len(turn["content"]) for turn in turns)
    prompt = await service.offload(size, service.engine.tokenizer.apply_chat_template, turns)
    check_choices(1, body.n or 1, service.settings.max_choices)
    wish = Wish(
        "chat",
        body.model,
        len(prompt),
        len(prompt),
        body.n or 1,
        params.max_tokens,
        body.service_tier,
        batch_id=batch_id,
        usage_id=usage_id,
    )
    passage = service.admission.passage(key, wish)
    return Chat(service, body, choices([prompt], params, body.model, body.n or 1, passage), passage)


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, output: Output) -> None:
        self.text.append(output.text)
        if output.logprob is not None:
            self.logprobs.append(chat_logprob(output.logprob))
        self.finish_reason = output.finish_reason


class Chat(Answer):
    """One chat completion on its way: the same outputs, either collected or streamed."""

    def __init__(self, service: Service, body: ChatBody, requests: list[Request], passage: Passage):
        super().__init__(service, requests, passage, [requests[0].prompt])
        self._body = body
        self._id = new_id("chatcmpl")
        self._created = now()

    async def whole(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        answers = [_Choice() for _ in self._requests]
        async with self.generation(receive) as generation:
            async for batch in self.batches(generation):
                for index, output in batch:
                    answers[index].add(output)
            completion = {
                **self._head("chat.completion"),
                "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
                "usage": self._usage.as_dict(),
            }
            yield dumps(completion)
            self.sent()

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._body.model,
            "service_tier": self._passage.terms.named,
            "system_fingerprint": None,
        }

    def _choice(self, index: int, answer: _Choice) -> dict[str, Any]:
        logprobs = {"content": answer.logprobs, "refusal": None} if self._body.logprobs else None
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(answer.text), "refusal": None},
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
        }

    async def events(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        chunks = Chunks(self._head("chat.completion.chunk"), usage=self._body.include_usage)
        begun: set[int] = set()
        async with self.generation(receive) as generation:
            async for batch in self.batches(generation):
                piece = []
                for index, output in batch:
                    if index not in begun:
                        begun.add(index)
                        piece.append(chunks.role(index))
                    piece.append(chunks.token(index, output))
                if any(piece):
                    yield b"".join(piece)
                    self.sent()
            end = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage.as_dict()}
            yield event(end) + DONE if self._body.include_usage else DONE


class Chunks:
    """The events of a stream; what is the same in all of them is serialised once."""

    def __init__(self, head: dict[str, Any], *, usage: bool):
        self._head = b"data: " + dumps(head)[:-1] + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if usage else b"}]}\n\n"

    def _chunk(self, index: int, rest: str) -> bytes:
        return b"%s%d,%s%s" % (self._head, index, rest.encode(), self._tail)

    def role(self, index: int) -> bytes:
        delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return self._chunk(index, delta)

    def token(self, index: int, output: Output) -> bytes:
        """The chunk with the new text, if there is any, and the last one with the reason for the end."""
        chunk = b""
        if output.text or output.logprob is not None:
            logprobs = "null"
            if output.logprob is not None:
                logprobs = json.dumps({"content": [chat_logprob(output.logprob)], "refusal": None})
            text = json.dumps(output.text)
            chunk = self._chunk(index, f'"delta":{{"content":{text}}},"logprobs":{logprobs},"finish_reason":null')
        if output.finish_reason is not None:
            end = f'"delta":{{}},"logprobs":null,"finish_reason":{json.dumps(output.finish_reason)}'
            chunk += self._chunk(index, end)
        return chunk

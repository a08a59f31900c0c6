"""An engine that answers at once and without a model: a token is a byte, the answer is what a test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coserve.engine import EngineStats, Histogram, Output, Request, TokenLogprob
from coserve.errors import ContextLengthExceeded, CoserveError, InvalidRequest, ModelError, ModelNotFound

HISTOGRAM = Histogram((0.01, 0.1), (1, 2, 3), 0.9)


class FakeTokenizer:
    bos_token_id = None
    vocab_size = 256

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> list[int]:
        if messages[0]["role"] == "assistant":
            raise InvalidRequest("The conversation must begin with a user.", param="messages")
        return self.encode("".join(f"{m['role']}:{m['content']}\n" for m in messages) + "assistant:")


class FakeEngine:
    """`answer` is what each request gets, a byte a token; `delay` seconds lie between two tokens."""

    def __init__(self, name: str = "base"):
        self.name = name
        self.device = "cpu"
        self.tokenizer = FakeTokenizer()
        self.model_config = SimpleNamespace(vocab_size=256, hidden_size=4096)
        self.max_context = 1000
        self.answer = "Hello, world!"
        self.delay = 0.0
        self.fail_after: int | None = None  # tokens
        self.failure: Exception = CoserveError("The engine failed on this request.")
        self.requests: list[Request] = []
        self.cancelled: set[str] = set()
        self.adapters: dict[str, Path] = {}
        self.stopped = threading.Event()
        self.asleep = False

    def models(self) -> list[str]:
        return [self.name, *self.adapters]

    def submit(self, request: Request, on_output: Callable[[Output], None]) -> None:
        if request.model not in self.models():
            raise ModelNotFound(f"The model {request.model!r} does not exist.", param="model")
        if len(request.prompt) + (request.params.max_tokens or 1) > self.max_context:
            raise ContextLengthExceeded("This model's context is 1000 tokens.", param="messages")
        self.requests.append(request)
        threading.Thread(target=self._answer, args=(request, on_output), daemon=True).start()

    def _answer(self, request: Request, on_output: Callable[[Output], None]) -> None:
        tokens = list(self.answer.encode())[: request.params.max_tokens]
        reason = "stop" if len(tokens) == len(self.answer.encode()) else "length"
        output = Output(request.id, None, "", None, len(request.prompt), 0)
        for count, token in enumerate(tokens, 1):
            time.sleep(self.delay)
            if request.id in self.cancelled or self.stopped.is_set():
                return on_output(replace(output, token_id=None, text="", finish_reason="cancelled"))
            if self.fail_after is not None and count > self.fail_after:
                failed = replace(output, token_id=None, text="", finish_reason="error", error=self.failure)
                return on_output(failed)
            output = Output(
                request.id,
                token,
                chr(token),
                reason if count == len(tokens) else None,
                len(request.prompt),
                count,
                self._logprob(token, request.params.logprobs),
            )
            on_output(output)

    def _logprob(self, token: int, wanted: int | None) -> TokenLogprob | None:
        if wanted is None:
            return None
        top = tuple((token + i, chr(token + i), -0.5 - i if i else -0.5) for i in range(wanted))
        return TokenLogprob(token, chr(token), -0.5, top)

    def cancel(self, request_id: str) -> None:
        self.cancelled.add(request_id)

    def load_adapter(self, name: str, path: Path) -> None:
        if not Path(path).is_dir():
            raise ModelError(f"{path} is no adapter.")
        self.adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        self.adapters.pop(name, None)

    def sleep(self) -> int:
        self.asleep = True
        return 7_000_000_000

    def wake(self) -> None:
        self.asleep = False

    def stats(self) -> EngineStats:
        numbers = {
            name: 7
            for name in EngineStats.__dataclass_fields__
            if name not in ("chip", "ttft", "itl") and not name.startswith("recent")
        }
        recent = {name: float("nan") for name in EngineStats.__dataclass_fields__ if name.startswith("recent")}
        return EngineStats(chip="fake", ttft=HISTOGRAM, itl=HISTOGRAM, **numbers, **recent)

    def shutdown(self) -> None:
        self.stopped.set()

"""A request while it is being served: its tokens, its blocks, and what was sent so far."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coserve.engine.config import EngineConfig
from coserve.engine.request import Output, Request
from coserve.errors import ContextLengthExceeded, InvalidRequest
from coserve.kernels import LoraLayer
from coserve.models.detokenizer import Detokenizer
from coserve.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sampled:
    """A chosen token, with what was asked about it."""

    token_id: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class ActiveRequest:
    """A request that was admitted or waits for it.

    `computed`: the tokens whose keys and values are in the cache. `rank`: its priority, and what waiting has added.
    """

    def __init__(
        self,
        request: Request,
        adapter: Sequence[LoraLayer] | None,
        detokenizer: Detokenizer,
        max_tokens: int,
        stop_ids: frozenset[int],
        on_output: Callable[[Output], None],
        arrived: float,
    ):
        self.request, self.params = request, request.params
        self.adapter = adapter
        self.detokenizer = detokenizer
        self.max_tokens = max_tokens
        self.stop_ids = stop_ids
        self.on_output = on_output
        self.arrived = arrived
        self.priority, self.share = request.priority, request.share
        self.rank = request.priority
        self.admitted = False  # once is enough
        self.last_turn = arrived  # when a step last gave it a token, or it was admitted
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(request.prompt)
        self.computed = 0
        self.blocks: list[int] = []
        self.drops = 0  # how often its blocks were taken away
        self.output_counts: Counter[int] = Counter()
        self.careful = False  # its tokens may need more of the logits than a GPU looks at: no step goes ahead of them
        self._random = random.Random(request.params.seed)
        self._drawn: list[float] = []
        self.last_token: float | None = None  # when the last token was emitted

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def decoding(self) -> bool:
        return self.remaining == 1 and self.completion_tokens > 0

    def due(self, config: EngineConfig) -> float:
        """When its next token is due, by its own goals or else the configuration's."""
        if self.last_token is None:
            return self.arrived + (self.request.ttft_goal or config.ttft_goal)
        return self.last_token + self.itl_goal(config)

    def itl_goal(self, config: EngineConfig) -> float:
        return self.request.itl_goal or config.itl_goal

    def draw(self, index: int) -> float:
        """The random number from [0, 1) that chooses completion token `index`: the same whenever it is asked for."""
        while len(self._drawn) <= index:
            self._drawn.append(self._random.random())
        return self._drawn[index]

    def append(self, token: int) -> str | None:
        """Take a sampled token; returns the finish reason that follows from the token itself, if any."""
        self.tokens.append(token)
        self.output_counts[token] += 1
        if token in self.stop_ids:
            return "stop"
        return "length" if self.completion_tokens >= self.max_tokens else None


def activate(
    request: Request,
    on_output: Callable[[Output], None],
    *,
    adapter: Sequence[LoraLayer] | None,
    tokenizer: Tokenizer,
    vocab_size: int,
    max_context: int,
) -> ActiveRequest:
    """Check a request against its model, and give it what it needs to run.

    Raises `InvalidRequest`, or `ContextLengthExceeded` if it could never fit into `max_context` tokens.
    """
    length, params = len(request.prompt), request.params
    if not length:
        raise InvalidRequest("The prompt is empty; it must hold at least one token.", param="prompt")
    if not all(0 <= token < vocab_size for token in request.prompt):
        raise InvalidRequest(f"The prompt holds a token id outside 0..{vocab_size - 1}.", param="prompt")
    if not all(0 <= token < vocab_size for token in params.logit_bias):
        raise InvalidRequest(f"logit_bias names a token id outside 0..{vocab_size - 1}.", param="logit_bias")
    room = max_context - length
    if room < 1 or (params.max_tokens is not None and params.max_tokens > room):
        asked = f" and max_tokens asks for {params.max_tokens} more" if params.max_tokens else ""
        raise ContextLengthExceeded(
            f"This model's context is {max_context} tokens; the prompt has {length}{asked}. "
            "Shorten the prompt or lower max_tokens.",
            param="messages",
        )
    stop_ids = frozenset(params.stop_token_ids)
    if not params.ignore_eos:
        stop_ids |= tokenizer.eos_token_ids
    return ActiveRequest(
        request,
        adapter,
        Detokenizer(tokenizer, params.stop),
        params.max_tokens or room,
        stop_ids,
        on_output,
        time.perf_counter(),
    )

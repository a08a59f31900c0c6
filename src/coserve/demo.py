"""A small client, so that there is traffic to watch: a few people who chat and pause to think."""

from __future__ import annotations

import random
import threading
from types import TracebackType

from coserve.address import Server
from coserve.client import Client
from coserve.errors import CoserveError

PEOPLE = 3
MEAN_PAUSE_SECONDS = 1.0
JOIN_SECONDS = 2.0

QUESTIONS = (
    "What is coserve?",
    "Why can one chip serve and train at the same time?",
    "How much memory bandwidth does an H100 have?",
    "Which has more memory, the A100 or the H200?",
    "How many GB of memory does the MI300X have? Answer in JSON.",
    "What is 17 plus 25?",
    "What is 12 times 8?",
    "How many gigabytes are 3 terabytes?",
    "What does TTFT mean?",
    "Hello! Who are you?",
)


class DemoLoad:
    """Traffic while the `with` block runs: at most `people` chats at once, with exponential pauses.

    Errors are ignored, but not hurried over: after one, a person pauses as after an answer.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        people: int = PEOPLE,
        mean_pause: float = MEAN_PAUSE_SECONDS,
        seed: int = 0,
    ):
        self._server = server
        self._model = model
        self._mean_pause = mean_pause
        self._over = threading.Event()
        self._people = [
            threading.Thread(target=self._chat, args=(random.Random(seed + i),), daemon=True, name=f"demo-{i}")
            for i in range(people)
        ]

    def __enter__(self) -> DemoLoad:
        for person in self._people:
            person.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for person in self._people:
            person.join(JOIN_SECONDS)

    def _chat(self, rng: random.Random) -> None:
        with Client(self._server) as client:
            while not self._over.wait(rng.expovariate(1 / self._mean_pause)):
                try:
                    self._ask(client, rng)
                except CoserveError:
                    continue

    def _ask(self, client: Client, rng: random.Random) -> None:
        message = {"role": "user", "content": rng.choice(QUESTIONS)}
        answer = client.chat([message], model=self._model, temperature=0.7, max_completion_tokens=rng.randint(32, 128))
        for _ in answer:
            if self._over.is_set():
                return

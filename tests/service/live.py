"""A server in a process of its own, to be killed: `python -m tests.service.live MODEL HOME PORT`.

With "fake" for MODEL the engine and the trainer are the tests' own. "fake-slow" takes its time over long answers, and
starts quickly, as it has no trainer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from coserve.service import Server, Settings, serve
from coserve.service.jobs import Training

KEY = "sk-cs-for-the-live-server"


def trainer(model: str) -> Training:
    if model == "fake-slow":
        return Training(job=None, read_examples=None)
    from tests.service.fake_training import TRAINING  # loads torch

    return TRAINING


def main(model: str, home: str, port: str) -> None:
    from tests.service.fake_engine import FakeEngine

    settings = Settings(home=Path(home), port=int(port), api_key=KEY, drain_seconds=1)
    if model.startswith("fake"):
        engine = FakeEngine()
        if model == "fake-slow":
            engine.answer, engine.delay = "abcde" * 60, 0.003
        server = Server(settings, lambda: engine, training=trainer(model))
    else:
        import torch

        from coserve.engine import Engine

        torch.set_num_threads(1)
        server = Server(settings, lambda: Engine.from_pretrained(model, home=Path(home), name="base"))
    serve(server, on_ready=lambda server: print(server.url, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])

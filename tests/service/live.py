"""A server in a process of its own, to be killed: `python -m tests.service.live MODEL HOME PORT`.

With "fake" for MODEL the engine and the trainer are the tests' own; "fake-slow" takes its time over long answers, has no
trainer, and starts quickly.
"""

from __future__ import annotations

import sys
from pathlib import Path

from coserve.service import Server, Settings, serve
from coserve.service.jobs import Training

NO_TRAINING = Training(job=None, read_examples=None)
KEY = "sk-cs-for-the-live-server"


def main(model: str, home: str, port: str) -> None:
    from tests.service.fake_engine import FakeEngine

    settings = Settings(home=Path(home), port=int(port), api_key=KEY, drain_seconds=1)
    if model.startswith("fake"):
        engine, training = FakeEngine(), NO_TRAINING
        if model == "fake-slow":
            engine.answer, engine.delay = "abcde" * 60, 0.003
        else:
            from tests.service.fake_training import TRAINING as training  # loads torch
        server = Server(settings, lambda: engine, training=training)
    else:
        import torch

        from coserve.engine import Engine

        torch.set_num_threads(1)
        server = Server(settings, lambda: Engine.from_pretrained(model, home=Path(home), name="base"))
    serve(server, on_ready=lambda server: print(server.url, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Our trainer by itself: the other one of `two_processes`, and what `training` alone means.

`python -m benchmarks.lone_trainer MODEL_DIRECTORY SEQUENCES TOKENS SEED` trains between the lines "start" and
"stop" on stdin. It says `{"tokens": n}` after each optimizer step, and `{"quiet": true}` when it is ready and
when it has stopped.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.training_load import TrainingShape, new_trainer
from coserve.models.decoder import Decoder
from coserve.training import Trainer
from coserve.training.run import machine_for


def main(path: str, sequences: str, tokens: str, seed: str) -> None:
    shape = TrainingShape(int(sequences), int(tokens))
    machine = machine_for(Decoder.from_directory(Path(path)), shape.step_tokens)
    data = shape.data(machine.decoder.config.vocab_size, int(seed))
    new_trainer(machine, data, shape.config(max_steps=1), lambda tokens: None).run()  # warm-up
    _say(quiet=True)
    while _wait_for("start"):
        trainer = new_trainer(machine, data, shape.config(), lambda tokens: _say(tokens=tokens))
        with _running(trainer):
            _wait_for("stop")
        _say(quiet=True)


def _wait_for(word: str) -> bool:
    """False if stdin ends before that line comes."""
    return any(line.strip() == word for line in sys.stdin)


@contextmanager
def _running(trainer: Trainer) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=trainer.run, args=(stopping.is_set,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

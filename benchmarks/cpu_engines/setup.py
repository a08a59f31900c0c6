"""What an engine is told when it loads, and what it tells of a checkpoint. Needs neither coserve nor a peer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    name: str
    checkpoint: str
    weights: str  # bf16, int8 or int4
    threads: int
    streams: int  # at once, at most
    context: int  # tokens of a stream, at most
    chunk: int  # tokens of all prompts at once, at most
    cache: str  # where files made from checkpoints are kept

    def config(self) -> dict[str, Any]:
        return json.loads((Path(self.checkpoint) / "config.json").read_text(encoding="utf-8"))

    def made(self, suffix: str, make: Callable[[Path], None]) -> Path:
        """A file or directory in the cache, made from this checkpoint the first time."""
        path = Path(self.cache) / f"{self.name}-{self._digest()}-{self.weights}{suffix}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{os.getpid()}-{path.name}")
            try:
                make(part)
                part.rename(path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
                part.unlink(missing_ok=True)
        return path

    def _digest(self) -> str:
        """Another one when the checkpoint's files are others."""
        files = sorted(Path(self.checkpoint).resolve().glob("*.safetensors"))
        facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def kv_elements(config: dict[str, Any]) -> int:
    """Of the keys and values that are kept for a token, in all layers."""
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    return config["num_hidden_layers"] * 2 * config.get("num_key_value_heads", heads) * dim

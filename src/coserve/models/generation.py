"""A model's `generation_config.json`: how its makers suggest to sample from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coserve.errors import ModelError
from coserve.models.files import read_json_if_present, token_ids


@dataclass(frozen=True)
class GenerationConfig:
    """Suggested defaults; None where the file says nothing."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_directory(cls, path: str | Path) -> GenerationConfig:
        """Read it from a model directory; no file: nothing is suggested. Raises `ModelError` if malformed."""
        file = Path(path) / "generation_config.json"
        content = read_json_if_present(file)
        top_k = _number(content, "top_k", file)
        do_sample = content.get("do_sample")
        return cls(
            do_sample=None if do_sample is None else bool(do_sample),
            temperature=_number(content, "temperature", file),
            top_p=_number(content, "top_p", file),
            top_k=None if top_k is None else int(top_k),
            min_p=_number(content, "min_p", file),
            repetition_penalty=_number(content, "repetition_penalty", file),
            eos_token_ids=token_ids(content.get("eos_token_id"), f"{file}: eos_token_id"),
        )


def _number(content: dict[str, Any], name: str, file: Path) -> float | None:
    value = content.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"{file}: {name} must be a number, not {value!r}")
    return float(value)

"""Reading the JSON files of a model directory, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coserve.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises `ModelError` if it is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # malformed JSON or UTF-8
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def read_json_if_present(path: Path) -> dict[str, Any]:
    """As `read_json`, but `{}` for a file that does not exist."""
    return read_json(path) if path.exists() else {}


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """The ids in a field that holds null, one id or a list of ids. Raises `ModelError` naming `where`."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ModelError(f"{where} must be a token id or a list of them, not {value!r}")
    return tuple(ids)

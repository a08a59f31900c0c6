"""From what a user calls a model to a directory on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from coserve.errors import ModelError

BUILTIN = "builtin"
BUILTIN_DIRECTORY = Path(__file__).parent / "builtin"

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.jinja"]
_UNWANTED = [
    "*/*",
    "consolidated*.safetensors",
]  # other formats' folders; Mistral's second copy of the weights


def resolve_model(model: str | Path, *, cache_dir: str | Path | None = None) -> Path:
    """The directory of `model`: "builtin", a local directory, or a hub id like "org/name" (downloaded).

    `cache_dir`: where downloads are kept; None means where `huggingface_hub` keeps them (`HF_HOME`).
    `HF_ENDPOINT` and `HF_TOKEN` are honoured. Raises `ModelError` if the model cannot be found or had.
    """
    if model == BUILTIN:
        return _checked(BUILTIN_DIRECTORY, "the built-in model is not part of this installation")
    directory = Path(model).expanduser()
    if directory.is_dir():
        return _checked(directory, f"{directory} is not a model directory: it has no config.json")
    if directory.exists():
        raise ModelError(f"{directory} is a file; a model is a directory with config.json and its weights")
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        raise ModelError(f"{model}: no such directory, and not a hub id (like org/name) or {BUILTIN!r} either")
    return _checked(_download(model, cache_dir), f"{model} on the hub has no config.json: not a model we can load")


def _checked(directory: Path, otherwise: str) -> Path:
    if not (directory / "config.json").is_file():
        raise ModelError(otherwise)
    return directory


def _download(hub_id: str, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import (
        errors,
        snapshot_download,
    )  # slow to import, and a local model needs none of it

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        return Path(
            # No revision is pinned: only data is loaded from it, never code.
            snapshot_download(  # nosec B615
                hub_id,
                cache_dir=cache_dir,
                endpoint=endpoint,
                token=os.environ.get("HF_TOKEN") or None,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
            )
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{hub_id} is gated: ask for access on its page, then set HF_TOKEN to a token that has it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{hub_id} is neither a local directory nor a model on the hub (for a private one, set HF_TOKEN)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{hub_id} is not a local directory, and the hub cannot be reached: {_summary(error)}"
        ) from error
    except Exception as error:  # the network's other ways to fail, a full disk, ...
        raise ModelError(f"{hub_id} cannot be fetched from the hub: {_summary(error)}") from error


def _summary(error: Exception) -> str:
    """The first line that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

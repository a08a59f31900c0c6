"""Files that an operator writes: found, read, and checked whole before anything of them holds."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from coserve.errors import InvalidRequest
from coserve.planner.quantities import seconds


class Part(BaseModel):
    """A part of such a file: what is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=Part)


def _duration(value: Any) -> Any:
    """Seconds of what is written as "500ms"; anything but a text stays."""
    if not isinstance(value, str):
        return value
    try:
        return seconds(value, "time")
    except InvalidRequest as error:
        raise ValueError(error.message) from None


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, allow_inf_nan=False)]
LARGEST = 10**18
"""Of a limit: what a 64-bit column holds, with room for sums."""
Number = Annotated[int | None, Field(gt=0, le=LARGEST)]


def find_file(named: Path | None, home: Path, name: str) -> Path | None:
    """The file to read: as named, else `home/name` if it is there, else None."""
    if named is not None:
        return named.expanduser()
    own = home / name
    return own if own.is_file() else None


def read_file(path: Path | Traversable, model: type[M], param: str) -> M:
    """Raises `InvalidRequest` with a line for each mistake, which names the file and the field."""
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise InvalidRequest(f"Cannot read {path}: {error.strerror}.", param=param) from None
    except ValidationError as error:
        raise InvalidRequest(_explain(path, error), param=param) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, brackets without end
        raise InvalidRequest(f"{path} is not YAML: {' '.join(str(error).split())}", param=param) from None


def _explain(path: Path | Traversable, error: ValidationError) -> str:
    lines = []
    for mistake in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(step) for step in mistake["loc"] if step != "[key]")
        what = mistake["msg"].removeprefix("Value error, ").rstrip(".")
        lines.append(f"{path}: {field + ': ' if field else ''}{what}.")
    return "\n".join(lines)

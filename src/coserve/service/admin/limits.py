"""A project's own limits as the API says them: a number, "unlimited", or null for the tier's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from coserve.service.auth.projects import OF_TIER
from coserve.service.yaml_file import LARGEST

UNLIMITED: Literal["unlimited"] = "unlimited"
Limit = Annotated[int, Field(gt=0, le=LARGEST)] | Literal["unlimited"] | None


def stored(limits: Mapping[str, Any]) -> dict[str, Any]:
    """For `change_project`."""
    words = {None: OF_TIER, UNLIMITED: None}
    return {name: words.get(value, value) for name, value in limits.items()}


def shown(limits: Mapping[str, int | None]) -> dict[str, Any]:
    return {name: UNLIMITED if value is None else value for name, value in limits.items()}

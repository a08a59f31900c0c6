"""Compact JSON, as it goes over the wire and into files."""

from __future__ import annotations

import json
from typing import Any

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # `json.dumps` would make one each time


def dumps(value: Any) -> bytes:
    """In ASCII: no line of it can be cut by a reader that counts U+2028 as a line's end."""
    return _ENCODER.encode(value).encode()

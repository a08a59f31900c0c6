"""Names of new objects, in OpenAI's manner: a prefix that tells the kind, then randomness."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """For example `new_id("chatcmpl")` is "chatcmpl-" and 24 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970, as OpenAI's objects give times."""
    return int(time.time())

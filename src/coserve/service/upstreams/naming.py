"""Replies under the client's names: its own word for the model, and this server's service tier."""

from __future__ import annotations

import re
from typing import Any

from coserve.service.compact import dumps

_STRING = rb'"(?:[^"\\]|\\.)*"'
_MODEL = re.compile(rb'"model"(?<!\\"model")\s*:\s*' + _STRING)
_TIER = re.compile(rb'"service_tier"(?<!\\"service_tier")\s*:\s*(?:null|' + _STRING + rb")")


class Naming:
    """For one reply. A stream's chunks are renamed as bytes: a key with both its quotes is never part of a text, as
    the quotes within one have backslashes before them. Chunks of chat without a service tier get one."""

    def __init__(self, model: str, tier: str, *, chat: bool):
        self._model, self._tier, self._chat = model, tier, chat
        self._as_model = b'"model":' + dumps(model)
        self._as_tier = b'"service_tier":' + dumps(tier)

    def whole(self, reply: dict[str, Any]) -> dict[str, Any]:
        if self._chat or "service_tier" in reply:
            reply["service_tier"] = self._tier
        return {**reply, "model": self._model}

    def chunk(self, data: bytes) -> bytes:
        named, found = _TIER.subn(lambda _: self._as_tier, data)
        as_model = self._as_model if found or not self._chat else self._as_model + b"," + self._as_tier
        return _MODEL.sub(lambda _: as_model, named)

"""Text to tokens and back, and conversations to tokens, as the model directory says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from coserve.errors import InvalidRequest, ModelError
from coserve.models.chat_template import ChatTemplate
from coserve.models.files import read_json_if_present, token_ids
from coserve.models.pieces import Pieces


class Tokenizer:
    """A model's tokenizer. Immutable once made, so threads may share it."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
    ):
        """`special_tokens`: text by role ("bos_token", ...). `eos_token_ids`: more ids that end a text."""
        special_tokens = dict(special_tokens or {})
        _mark_special(backend, special_tokens.values())
        backend.no_truncation()  # the file may ask for either, but a prompt is used as it is
        backend.no_padding()
        self.backend = backend
        self.special_tokens = special_tokens
        self.chat_template = chat_template
        self.pieces = Pieces.from_decoder(json.loads(backend.to_str()).get("decoder"))
        self.vocab_size: int = max(backend.get_vocab().values(), default=-1) + 1
        self.bos_token_id: int | None = self._id_of("bos_token")
        self.special_token_ids: frozenset[int] = frozenset(
            id for id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        eos = self._id_of("eos_token")
        self.eos_token_ids: frozenset[int] = frozenset(eos_token_ids) | ({eos} if eos is not None else set())

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Read a model directory as it is on the hub.

        Only `tokenizer.json` must be there. Raises `ModelError`, naming the file, if it is missing or broken.
        """
        path = Path(path)
        config = read_json_if_present(path / "tokenizer_config.json")
        backend = _read_backend(path)
        _add_missing_tokens(backend, config)
        special_tokens = _special_tokens(config, read_json_if_present(path / "special_tokens_map.json"))
        return cls(
            backend,
            special_tokens=special_tokens,
            eos_token_ids=_eos_token_ids(path),
            chat_template=ChatTemplate.from_directory(path, config, special_tokens),
        )

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, between what the tokenizer puts around a text if `add_special_tokens`."""
        return self.backend.encode(_valid_unicode(text), add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; unknown ids are left out, bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, id: int) -> bytes:
        """What a token adds in the middle of a text, perhaps part of a character. Unknown id: b""."""
        token = self.backend.id_to_token(id)
        if token is None:
            return b""
        if self.pieces is None:
            return self.backend.decode([id], skip_special_tokens=False).encode()
        return self.pieces.to_bytes(token)

    def token_text(self, id: int) -> str:
        """`token_bytes` to read: part of a character shows as U+FFFD, a special token as its name."""
        return self.token_bytes(id).decode(errors="replace")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as the model reads it; `kwargs` reach the template.

        Raises `InvalidRequest(param="messages")` if the template refuses the messages or there is none.
        """
        if self.chat_template is None:
            raise InvalidRequest(
                "the model has no chat template; send the text of a prompt to /v1/completions",
                param="messages",
            )
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **kwargs)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of `render_chat`. The template writes the special tokens; none are added around them."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, tools=tools, **kwargs)
        return self.encode(text, add_special_tokens=False)

    def _id_of(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    file = path / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{path} has no tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{file} is not a tokenizer: {error}") from error


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Tokens that `tokenizer_config.json` lists under their ids and `tokenizer.json` lacks."""
    listed = config.get("added_tokens_decoder") or {}
    for id, token in sorted(listed.items(), key=lambda entry: int(entry[0])):
        if backend.token_to_id(token["content"]) is None and int(id) == backend.get_vocab_size():
            flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
            backend.add_tokens([tokenizers.AddedToken(token["content"], special=token.get("special", False), **flags)])


def _mark_special(backend: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    """Special tokens are never cut up or printed, even if `tokenizer.json` forgot to say so."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for token in tokens:
        if token not in known and backend.token_to_id(token) is not None:
            backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])


def _special_tokens(config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> dict[str, str]:
    """Text by role. A token is a string or an object with `content`. The configuration, null too, wins."""
    entries = {**special_tokens_map, **config}
    return {
        role: token["content"] if isinstance(token, dict) else token
        for role, token in entries.items()
        if role.endswith("_token") and (isinstance(token, str) or (isinstance(token, dict) and "content" in token))
    }


def _eos_token_ids(path: Path) -> tuple[int, ...]:
    """Ids that end a text, from both files that may list them."""
    files = [path / "generation_config.json", path / "config.json"]
    fields = [(read_json_if_present(file).get("eos_token_id"), f"{file}: eos_token_id") for file in files]
    return tuple(id for value, where in fields for id in token_ids(value, where))


def _valid_unicode(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no encoding can: U+FFFD in its place."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

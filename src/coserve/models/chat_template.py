"""Chat templates: Jinja programs that come with a model and write a conversation as it learned to read it.

They are somebody else's code, so they run in Jinja's sandbox, with the names and filters of `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coserve.errors import InvalidRequest, ModelError
from coserve.models.files import read_json

_REASONING = ("reasoning_content", "thinking", "reasoning")  # names for one thing; templates read the first


class ChatTemplate:
    """One template, or several with names: "default", and "tool_use" for when there are tools."""

    def __init__(self, sources: Mapping[str, str], variables: Mapping[str, Any]):
        """`sources`: template by name. `variables`: what a template always sees, such as `bos_token`."""
        self._sources = sources
        self._variables = variables

    @classmethod
    def from_directory(
        cls, path: Path, tokenizer_config: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> ChatTemplate | None:
        """The directory's template from wherever it keeps it; None if it has none."""
        sources = _find_sources(path, tokenizer_config)
        return cls(sources, variables) if sources else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Any = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as text.

        Raises `InvalidRequest` when the template refuses the messages (it says why) and `ModelError` when the
        template itself is broken; both with `param="messages"`.
        """
        template = self._choose(tools)
        try:
            return template.render(
                **{
                    **self._variables,
                    "documents": None,
                    **kwargs,
                    "messages": _prepare(messages),
                    "tools": tools or None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # a template may do anything with what a client sent
            raise InvalidRequest(f"the chat template refused the messages: {error}", param="messages") from error

    def _choose(self, tools: Any) -> jinja2.Template:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ModelError(
                f"the model has no default chat template, only {', '.join(sorted(self._templates))}",
                param="messages",
            )
        return self._templates[name]

    @cached_property
    def _templates(self) -> dict[str, jinja2.Template]:
        environment = _environment()
        try:
            return {name: environment.from_string(source) for name, source in self._sources.items()}
        except jinja2.TemplateSyntaxError as error:
            message = f"the model's chat template is broken at line {error.lineno}: {error.message}"
            raise ModelError(message, param="messages") from error


def _find_sources(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """A file of its own wins over `tokenizer_config.json`, as in `transformers`."""
    if (path / "chat_template.jinja").is_file():
        return {"default": (path / "chat_template.jinja").read_text(encoding="utf-8")}
    template = tokenizer_config.get("chat_template")
    if template is None and (path / "chat_template.json").is_file():
        template = read_json(path / "chat_template.json").get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"default": template}
    try:
        return {entry["name"]: entry["template"] for entry in template}
    except (TypeError, KeyError):
        raise ModelError(f"{path}: chat_template must be a string or a list of named templates") from None


def _prepare(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without null fields, which templates would print; reasoning under the names they read."""
    if not messages:
        raise ValueError("there must be at least one message")
    prepared = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise TypeError(f"a message must be an object, not {message!r}")
        fields = {name: value for name, value in message.items() if value is not None}
        reasoning = next((fields[name] for name in _REASONING if name in fields), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        prepared.append(fields)
    return prepared


# --- what a template may use -----------------------------------------------------------------


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is a block like any other."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a language model should not see."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment

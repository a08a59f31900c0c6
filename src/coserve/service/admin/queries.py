"""What stands behind the `?`: lists, numbers, yes and no; each mistake is told by its name."""

from __future__ import annotations

from starlette.requests import Request

from coserve.errors import InvalidRequest


def only(http: Request, *names: str) -> None:
    """Raises `InvalidRequest` for any other parameter: a filter that is ignored would answer another question."""
    for name in http.query_params:
        if name.removesuffix("[]") not in names:
            raise InvalidRequest(f"{name!r} is not known here.", param=name, code="unknown_parameter")


def many(http: Request, name: str) -> list[str]:
    """All that `name` and `name[]` say."""
    return [*http.query_params.getlist(f"{name}[]"), *http.query_params.getlist(name)]


def moment(http: Request, name: str) -> int | None:
    """Seconds since 1970."""
    text = http.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidRequest(f"'{name}' must be a time in whole seconds since 1970.", param=name)
    return int(text)


def flag(http: Request, name: str) -> bool | None:
    text = http.query_params.get(name)
    if text not in (None, "true", "false"):
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)
    return None if text is None else text == "true"


def choice(http: Request, name: str, choices: tuple[str, ...], default: str) -> str:
    text = http.query_params.get(name, default)
    if text not in choices:
        raise InvalidRequest(f"'{name}' must be one of {', '.join(choices)}.", param=name)
    return text

"""The chips that ship with the package: `*.toml` of this folder, one file per vendor.

In a file, a figure is `[value, source]` or `[value, source, note]`, in bytes, seconds, FLOP/s, watts and dollars;
`source` names an entry of the file's `[sources]`. A note says what the source does not: of what kind a price is, how an
estimate was made.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from coserve.chips.spec import ChipSpec, Figure, MemoryLevel
from coserve.errors import InvalidRequest

_SCALARS = ("link_bandwidth", "link_latency", "group", "power")
_OPTIONAL = ("price_per_hour", "crossing")


@cache
def catalogue() -> tuple[ChipSpec, ...]:
    """All chips, in the order of the files."""
    files = sorted((f for f in resources.files("coserve.chips").iterdir() if f.name.endswith(".toml")), key=str)
    return tuple(chip for file in files for chip in read_chips(file.read_text(encoding="utf-8"), file.name))


def find_chip(name: str) -> ChipSpec:
    """The chip with that name or alias; case, spaces and punctuation do not matter.

    Raises `InvalidRequest` for an unknown one, with names that are near.
    """
    found = _by_name().get(_plain(name))
    if found is None:
        near = [_by_name()[key].name for key in difflib.get_close_matches(_plain(name), _by_name(), n=5, cutoff=0.5)]
        hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "`coserve chips` lists all"
        raise InvalidRequest(f"unknown chip {name!r}: {hint}", param="chip")
    return found


def read_chips(text: str, file: str) -> list[ChipSpec]:
    """The chips of one TOML file. Raises `ValueError`, naming file, chip and field, for a figure without a source."""
    content = tomllib.loads(text)
    sources = {name: _Source(**entry) for name, entry in content["sources"].items()}
    return [_chip(content["vendor"], entry, sources, file) for entry in content["chip"]]


class _Source:
    def __init__(self, text: str, date: str, confidence: str):
        self.text, self.date, self.confidence = text, date, confidence

    def figure(self, value: float, note: str = "") -> Figure:
        return Figure(float(value), f"{self.text}; {note}" if note else self.text, self.date, self.confidence)  # type: ignore[arg-type]


def _chip(vendor: str, entry: Mapping[str, Any], sources: Mapping[str, _Source], file: str) -> ChipSpec:
    figures: dict[str, Figure] = {}
    for field, cell in _cells(entry):
        try:
            value, source, *note = cell
            figures[field] = sources[source].figure(value, *note)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{file}: {entry['name']}: {field} must be [value, source, note?], not {cell!r}"
            ) from error
    levels = tuple(
        MemoryLevel(name, figures[f"memory.{name}.capacity"].value, figures[f"memory.{name}.bandwidth"].value)
        for name in (level["name"] for level in entry["memory"])
    )
    price = figures.get("price_per_hour")
    return ChipSpec(
        name=entry["name"],
        vendor=vendor,
        kind=entry["kind"],
        memory=levels,
        flops={name: figures[f"flops.{name}"].value for name in entry["flops"]},
        link_bandwidth=figures["link_bandwidth"].value,
        link_latency=figures["link_latency"].value,
        group=int(figures["group"].value),
        power=figures["power"].value,
        price_per_hour=None if price is None else price.value,
        figures=figures,
        matmul={name: figures[f"matmul.{name}"].value for name in entry.get("matmul", ())},
        topology=entry.get("topology", "switch"),
        crossing=figures["crossing"].value if "crossing" in figures else 0.0,
        trains=entry.get("trains", True),
        aliases=tuple(entry.get("aliases", ())),
    )


def _cells(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(field name, cell) of every figure of a chip."""
    for level in entry["memory"]:
        for field in ("capacity", "bandwidth"):
            yield f"memory.{level['name']}.{field}", level.get(field)
    for table in ("flops", "matmul"):
        for name, cell in entry.get(table, {}).items():
            yield f"{table}.{name}", cell
    for field in _SCALARS:
        yield field, entry.get(field)
    for field in _OPTIONAL:
        if field in entry:
            yield field, entry[field]


@cache
def _by_name() -> dict[str, ChipSpec]:
    """Chips by every name, with and without their maker's before it."""
    names = ((name, chip) for chip in catalogue() for name in (chip.name, *chip.aliases))
    return {_plain(prefix + name): chip for name, chip in names for prefix in ("", chip.vendor)}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

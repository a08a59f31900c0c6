"""The API's words for what the bill is kept by: a model is the adapter if there was one, a batch has its own terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coserve.service.ledger.days import SUMS
from coserve.service.ledger.totals import Totals
from coserve.service.tiers import BATCH

Group = Mapping[str, str | None]


@dataclass(frozen=True)
class Kind:
    """One of the API's groups: what the bill must be grouped by, and what to make of it."""

    needs: tuple[str, ...]
    value: Callable[[Group], Any]


def _same(name: str) -> Kind:
    return Kind((name,), lambda group: group[name])


def _model(group: Group) -> str | None:
    return group["adapter"] or group["model"]


KINDS = {
    "project_id": _same("project_id"),
    "api_key_id": _same("key_id"),
    "tier": _same("tier"),
    "service_tier": _same("terms"),
    "batch": Kind(("terms",), lambda group: group["terms"] == BATCH),
    "model": Kind(("model", "adapter"), _model),
    "line_item": Kind(("model", "adapter", "endpoint"), lambda group: f"{_model(group)}, {group['endpoint']}"),
}


@dataclass(frozen=True)
class Wanted:
    """Which groups an answer has, and which of them it leaves out."""

    group_by: Sequence[str]
    keep: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # values by group; empty: all

    @property
    def needs(self) -> list[str]:
        """What to group the bill by."""
        names = [*self.group_by, *(name for name, values in self.keep.items() if values)]
        return list(dict.fromkeys(need for name in names for need in KINDS[name].needs))

    def sums(self, found: Iterable[Totals]) -> list[Totals]:
        """The bill's totals by the API's groups, in the order of time."""
        sums: dict[tuple[Any, ...], Totals] = {}
        for one in found:
            if not all(KINDS[name].value(one.group) in values for name, values in self.keep.items() if values):
                continue
            group = {name: KINDS[name].value(one.group) for name in self.group_by}
            key = (one.start, *group.values())
            known = sums.get(key)
            sums[key] = replace(one, group=group) if known is None else _added(known, one)
        return list(sums.values())


def _added(one: Totals, other: Totals) -> Totals:
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in SUMS})

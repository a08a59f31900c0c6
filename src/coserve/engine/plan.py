"""What goes into a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from coserve.engine.active import ActiveRequest
from coserve.engine.segment import Segment


@dataclass
class Plan:
    """The segments of the highest priority, and who of lower ones would ride along.

    Riders are added by `Scheduler.take`, as far as `Protection` lets them.
    """

    chosen: list[tuple[ActiveRequest, Segment]] = field(default_factory=list)
    lower: list[ActiveRequest] = field(default_factory=list)  # whose turn it is first
    alone: float = 0.0  # predicted seconds of the highest priority's segments
    grown: float = 0.0  # seconds that riders add to them
    short: bool = False  # whether some of the lower ones got less than they could use

    @property
    def rows(self) -> int:
        return sum(len(segment.tokens) for _, segment in self.chosen)

    def segments(self) -> list[Segment]:
        return [segment for _, segment in self.chosen]

    def asking(self) -> list[ActiveRequest]:
        """Those who get a token, in the segments' order."""
        return [request for request, segment in self.chosen if segment.sample]

    def arrange(self) -> None:
        """Put segments of one adapter side by side."""
        self.chosen.sort(key=lambda pair: (pair[1].adapter is not None, pair[0].request.model))

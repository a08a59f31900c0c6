"""What a person sees in the terminal: a picture of a running engine and of its fine-tuning job.

`State` is everything that is shown, as plain values; `Meter` makes it of successive snapshots of a server.
`screen` and `line` are pure functions from a state to a rich renderable and to one line of text, and `watch`
keeps either of them up to date. Nothing here knows how a server is reached or started.
"""

from coserve.display.lines import line
from coserve.display.meter import Meter
from coserve.display.screen import screen
from coserve.display.state import Comparison, JobState, Shares, State
from coserve.display.watch import watch

__all__ = ["Comparison", "JobState", "Meter", "Shares", "State", "line", "screen", "watch"]

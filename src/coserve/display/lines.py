"""The display where there is no screen: one line of text for a state."""

from __future__ import annotations

from coserve.display.state import JobState, State
from coserve.display.text import clock, milliseconds, percent, rate


def line(state: State) -> str:
    """Everything that matters, in a line that a log can keep."""
    parts = [
        clock(state.uptime),
        f"requests {state.running} running {state.waiting} waiting {state.finished} done",
        f"output {rate(state.output_rate)} tokens/s",
        f"TTFT {milliseconds(state.ttft_p50)}/{milliseconds(state.ttft_p99)}",
        f"ITL {milliseconds(state.itl_p50)}/{milliseconds(state.itl_p99)}",
        f"MBU {percent(state.mbu)}",
        f"time {percent(state.shares.inference)} inference {percent(state.shares.training)} training",
    ]
    if state.job is not None:
        parts.append(_job(state.job, state.training_rate))
    return " | ".join(parts)


def _job(job: JobState, training_rate: float) -> str:
    text = f"training {job.status}"
    if job.total_steps:
        text += f" step {job.step}/{job.total_steps}"
    if job.losses:
        text += f" loss {job.losses[-1]:.3f}"
    return text if job.over else f"{text} {rate(training_rate)} tokens/s"

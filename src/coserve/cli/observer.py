"""Asking a running server again and again, and making states to show of what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from coserve.client import Client
from coserve.display.meter import Meter
from coserve.display.state import Comparison, JobState, State

JOB_SECONDS = 1.0  # between two looks at the job and its events


class JobObserver:
    """A fine-tuning job's state, kept up to date from the job object and from its events."""

    def __init__(self, client: Client, job_id: str):
        self._client = client
        self._known: set[str] = set()
        self.state = JobState(id=job_id, status="queued")

    def refresh(self) -> JobState:
        job = self._client.job(self.state.id)
        for event in self._client.events(self.state.id, known=self._known):
            self._known.add(event["id"])
            self.state = with_event(self.state, event)
        self.state = with_job(self.state, job)
        return self.state


def with_job(state: JobState, job: Mapping[str, Any]) -> JobState:
    """The state as the job object now tells it."""
    error = job.get("error") or {}
    return replace(
        state,
        status=job["status"],
        model=job["model"],
        fine_tuned_model=job.get("fine_tuned_model"),
        trained_tokens=job.get("trained_tokens") or state.trained_tokens,
        message=error.get("message") or state.message,
    )


def with_event(state: JobState, event: Mapping[str, Any]) -> JobState:
    """The state after one more event."""
    data = event.get("data") or {}
    loss = data.get("train_loss")
    return replace(
        state,
        step=int(data.get("step") or state.step),
        total_steps=int(data.get("total_steps") or state.total_steps),
        losses=state.losses if loss is None else (*state.losses, float(loss)),
        valid_loss=data.get("valid_loss", state.valid_loss),
        trained_tokens=int(data.get("trained_tokens") or state.trained_tokens),
        message=event.get("message") or state.message,
    )


class Observer:
    """Endless states of one server. `job`, `notes` and `comparison` may be set at any time.

    With `follow_latest` it looks for the job to show by itself.
    """

    def __init__(self, client: Client, *, follow_latest: bool = False, clock: Callable[[], float] = time.monotonic):
        self._client = client
        self._clock = clock
        self._follow_latest = follow_latest
        self._meter = Meter(f"{client.server.url}/v1")
        self._model = ""
        self._job_due = 0.0
        self.job: JobObserver | None = None
        self.notes: tuple[str, ...] = ()
        self.comparison: Comparison | None = None

    def __iter__(self) -> Iterator[State]:
        while True:
            yield self.look()

    def look(self) -> State:
        """One state, now."""
        now = self._clock()
        if not self._model:
            self._model = next((model["id"] for model in self._client.models()), "")
        if now >= self._job_due:
            self._job_due = now + JOB_SECONDS
            self._refresh_job()
        return self._meter.state(
            now,
            self._client.stats(),
            model=self._model,
            job=self.job.state if self.job else None,
            notes=self.notes,
            comparison=self.comparison,
        )

    def _refresh_job(self) -> None:
        if self._follow_latest:
            job_id = current_job(self._client.jobs())
            if job_id and (self.job is None or self.job.state.id != job_id):
                self.job = JobObserver(self._client, job_id)
        if self.job is not None and not self.job.state.over:
            self.job.refresh()


def current_job(jobs: list[dict[str, Any]]) -> str | None:
    """The job to look at: the one that trains, else the newest."""
    running = [job["id"] for job in jobs if job["status"] == "running"]
    return next(iter(running or [job["id"] for job in jobs]), None)

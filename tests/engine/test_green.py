"""Slices beside steps: confined to some multiprocessors while somebody is served, on the whole GPU otherwise."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch

from coserve.engine import EngineConfig
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.clock import GpuClock
from coserve.engine.gpu import green
from coserve.errors import InvalidRequest
from coserve.roofline import Estimator, Roofline
from tests.engine.test_background_queue import CHIP, Job
from tests.engine.test_clock import Gpu

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def fresh():
    green.confined_stream.cache_clear()
    yield
    green.confined_stream.cache_clear()
    green._contexts.clear()


class Context:
    """Only while it is current does it make streams of its own."""

    def __init__(self, log: list, multiprocessors: int):
        self.log, self.multiprocessors = log, multiprocessors

    def set_context(self) -> None:
        self.log.append("set")

    def pop_context(self) -> None:
        self.log.append("pop")


@pytest.fixture
def driver(monkeypatch, fresh):
    """What the driver was asked to do."""
    log: list = []

    def new_context(device, multiprocessors):
        log.append(multiprocessors)
        return Context(log, multiprocessors)

    def new_stream():
        log.append("stream")
        return 17

    monkeypatch.setattr(green, "_new_context", new_context)
    monkeypatch.setattr(green, "_new_stream", new_stream)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: ("stream", handle))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the engine's")
    monkeypatch.setattr(torch.cuda, "stream", restoring(log))
    properties = type("Properties", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return log


def restoring(log: list):
    @contextlib.contextmanager
    def stream(current):
        try:
            yield
        finally:
            log.append(f"back to {current}")

    return stream


def test_a_stream_is_made_in_a_context_of_half_of_the_multiprocessors(driver):
    assert green.confined_stream(DEVICE, 0) == ("stream", 17)
    assert driver == [64, "set", "stream", "pop", "back to the engine's"]
    assert [context.multiprocessors for context in green._contexts] == [64]


def test_a_stream_is_made_once_and_for_as_many_multiprocessors_as_were_said(driver):
    assert green.confined_stream(DEVICE, 32) is green.confined_stream(DEVICE, 32)
    assert driver.count("stream") == 1 and driver[0] == 32


def test_where_no_stream_can_be_made_the_context_is_left_and_the_log_says_it(driver, monkeypatch, caplog):
    def fails():
        raise OSError("libcuda.so.1 is not there")

    monkeypatch.setattr(green, "_new_stream", fails)
    with caplog.at_level(logging.WARNING):
        assert green.confined_stream(DEVICE, 32) is None
    assert driver[-2:] == ["pop", "back to the engine's"] and not green._contexts
    assert "libcuda" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_none(fresh, caplog):
    assert green.confined_stream(DEVICE, 32) is None
    assert "not confined" in caplog.text


@pytest.mark.parametrize(("count", "half"), [(132, 64), (108, 48), (16, 8), (10, 8)])
def test_half_of_the_multiprocessors(count, half):
    assert green.half_of(count) == half


def test_fewer_than_none_is_refused():
    with pytest.raises(InvalidRequest, match="beside_multiprocessors"):
        EngineConfig(beside_multiprocessors=-8)


class Stream:
    def __init__(self, name: str, waits: list):
        self.name, self.waits = name, waits

    def wait_stream(self, other) -> None:
        self.waits.append((self.name, other.name))


def test_only_while_somebody_is_served_slices_are_confined_and_each_stream_waits_for_the_other(monkeypatch):
    waits, used, gpu = [], [], Gpu()
    whole, confined = Stream("whole", waits), Stream("confined", waits)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(used.append(stream.name)))
    queue = BackgroundQueue(Estimator(Roofline(CHIP)), GpuClock(whole, gpu.event, confined=confined))
    queue.add(Job(99))
    for alone in (True, True, False, False, True):
        used.clear()
        queue.run(1.0, at_least_one=True, alone=alone)
        assert set(used) == {"whole" if alone else "confined"}
    assert waits == [("confined", "whole"), ("whole", "confined")]


def test_without_green_contexts_all_slices_share_one_stream(monkeypatch):
    used, gpu = [], Gpu()
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(used.append(stream.name)))
    queue = BackgroundQueue(Estimator(Roofline(CHIP)), GpuClock(Stream("low", []), gpu.event))
    queue.add(Job(99))
    for alone in (True, False):
        queue.run(1.0, at_least_one=True, alone=alone)
    assert set(used) == {"low"}

import queue
import threading

import pytest

from coserve.engine.inbox import Inbox
from coserve.errors import Unavailable


class Reader(threading.Thread):
    """Reads an inbox until it is closed, as the engine's thread does."""

    def __init__(self):
        super().__init__(daemon=True)
        self._made = threading.Event()
        self.start()
        self._made.wait()

    def run(self):
        self.inbox = Inbox()
        self._made.set()
        while not self.inbox.closed:
            self.inbox.wait(60)
        self.inbox.read()


def test_what_is_asked_is_answered_and_what_fails_fails_for_who_asked():
    reader = Reader()
    assert reader.inbox.ask(threading.current_thread) is reader
    with pytest.raises(ZeroDivisionError):
        reader.inbox.ask(lambda: 1 / 0)
    assert reader.inbox.ask(lambda: reader.inbox.ask(lambda: 7)) == 7, "who reads need not wait for himself"
    assert reader.inbox.close() and not reader.inbox.close()
    reader.join(10)
    assert not reader.is_alive()
    with pytest.raises(Unavailable):
        reader.inbox.ask(lambda: 7)


def test_what_was_taken_before_the_end_is_done_and_the_rest_is_refused():
    """Whoever it is put by, and however close to the end."""
    for _ in range(20):
        reader, done, taken = Reader(), [], []

        def crowd(reader=reader, done=done, taken=taken):
            while reader.inbox.put(lambda: done.append(1)):
                taken.append(1)

        putting = [threading.Thread(target=crowd) for _ in range(3)]
        for thread in putting:
            thread.start()
        reader.inbox.ask(lambda: None)
        reader.inbox.close()
        for thread in (*putting, reader):
            thread.join(10)
        assert not reader.is_alive() and len(done) == len(taken) and not reader.inbox.put(lambda: None)


def test_who_asks_may_be_interrupted_by_somebody_who_asks():
    """As by the garbage collector, which ends a `generate` that nobody goes on with."""
    inbox = Inbox()
    inbox._asked = Interrupted(lambda: inbox.put(lambda: done.append("then")))
    done: list[str] = []
    putting = threading.Thread(target=inbox.put, args=(lambda: done.append("first"),), daemon=True)
    putting.start()
    putting.join(10)
    assert not putting.is_alive()
    inbox.read()
    assert sorted(done) == ["first", "then"]


class Interrupted(queue.SimpleQueue):
    def __init__(self, by):
        self._by = [by]

    def put(self, item):
        if self._by:
            self._by.pop()()
        super().put(item)


def test_a_function_that_finds_some_queue_empty_fails_and_the_next_one_is_done():
    inbox, done = Inbox(), []
    inbox.put(lambda: queue.SimpleQueue().get_nowait())
    inbox.put(lambda: done.append(1))
    with pytest.raises(queue.Empty):
        inbox.read()
    inbox.read()
    assert done

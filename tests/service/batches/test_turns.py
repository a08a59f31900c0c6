"""Few at once, and nobody is forgotten."""

import asyncio
from collections import Counter

from coserve.service.batches.turns import Turns


class Work:
    """Requests that last two rounds of the loop; remembers in which order they ran and how many at once."""

    def __init__(self, turns: Turns):
        self.turns = turns
        self.order: list[tuple[str, str]] = []
        self.now = self.most = 0

    async def one(self, project: str, batch: str) -> None:
        async with self.turns.request(project, batch):
            self.order.append((project, batch))
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1


def test_projects_share_alike_however_many_batches_they_have():
    async def run():
        work = Work(Turns(4))
        names = [("p", "p1"), ("p", "p2"), ("p", "p3"), ("q", "q1")]
        async with asyncio.TaskGroup() as group:
            for name in names:
                for _ in range(30):
                    group.create_task(work.one(*name))
        return work

    work = asyncio.run(run())
    assert work.most == 4
    early = Counter(project for project, _ in work.order[:48])
    assert abs(early["p"] - early["q"]) <= 6
    batches = Counter(batch for project, batch in work.order[:60] if project == "p")
    assert max(batches.values()) - min(batches.values()) <= 4


def test_with_one_place_everyone_gets_a_turn():
    async def run():
        work = Work(Turns(1))
        async with asyncio.TaskGroup() as group:
            for batch in range(10):
                for _ in range(3):
                    group.create_task(work.one(f"p{batch % 5}", f"b{batch}"))
        return work.order

    order = asyncio.run(run())
    assert len({project for project, _ in order[:6]}) == 5
    assert len({batch for _, batch in order[:14]}) == 10


def test_who_gives_up_waiting_takes_no_place():
    async def run():
        turns = Turns(1)
        work = Work(turns)
        async with turns.request("p", "a"):
            waiting = [asyncio.create_task(work.one("p", "a")) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        waiting[1].cancel()  # its turn has just come
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.wait_for(work.one("q", "b"), 1)
        assert turns.running("a") == turns.running("b") == 0
        return work

    work = asyncio.run(run())
    assert (work.most, work.order) == (1, [("p", "a"), ("q", "b")])

"""Tokens billed are tokens delivered, and limits hold, for many clients at once of whom many leave early."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from sqlalchemy import select

from coserve.service.auth.projects import NewProject
from coserve.service.limits import Limit
from coserve.service.tables import UsageRow
from tests.service.admission.asgi import application, post
from tests.service.fake_engine import FakeEngine
from tests.service.tenants import make_tenants

ANSWER = "abcdefghijklmnopqrst"
CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hi"}]}
LIMITS = {"concurrent_requests": None, "tokens_per_day": 1_000_000}
PROMPT_TOKENS = len("user:Hi\nassistant:")


async def rows(app) -> list[UsageRow]:
    service = app.state.service
    assert await service.ledger.flush()
    async with service.database.read() as session:
        return list(await session.scalars(select(UsageRow)))


def ask(tmp_path, body, *, path="/v1/chat/completions", tier="developer", leave_after=None, delay=0.0, **project):
    """One request to a fresh server: the exchange, and its row in the ledger."""
    [(project_id, key)] = make_tenants(tmp_path, [NewProject("p", tier=tier, **project)])

    async def run():
        engine = FakeEngine()
        engine.answer, engine.delay = ANSWER, delay
        async with application(tmp_path, engine) as app:
            exchange = await post(app, path, key, body, leave_after=leave_after)
            found = await rows(app)
        assert all(row.project_id == project_id for row in found)
        return exchange, found

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_a_whole_answer_is_one_row_at_the_tiers_price(tmp_path, stream):
    exchange, [row] = ask(tmp_path, {**CHAT, "stream": stream})
    assert exchange.status == 200
    assert (row.endpoint, row.outcome, row.tier, row.terms) == ("chat", "completed", "developer", "default")
    assert (row.prompt_tokens, row.completion_tokens, row.generated_tokens) == (PROMPT_TOKENS, 20, 20)
    assert row.cost == PROMPT_TOKENS * 100 + 20 * 400  # nano-dollars: 0.10 and 0.40 USD a million
    assert row.ttft_ms is not None
    assert 0 < row.ttft_ms <= row.latency_ms


def test_flex_is_half_the_price_and_the_reply_says_so(tmp_path):
    exchange, [row] = ask(tmp_path, {**CHAT, "service_tier": "flex"})
    assert b'"service_tier":"flex"' in exchange.body
    assert (row.tier, row.terms, row.cost) == ("developer", "flex", PROMPT_TOKENS * 50 + 20 * 200)


def test_several_choices_of_several_prompts(tmp_path):
    body = {"model": "base", "prompt": ["ab", "cde"], "n": 2, "max_tokens": 7}
    _, [row] = ask(tmp_path, body, path="/v1/completions")
    assert (row.prompt_tokens, row.completion_tokens) == (5, 4 * 7)


def test_who_leaves_in_the_middle_pays_for_what_came(tmp_path):
    exchange, [row] = ask(tmp_path, {**CHAT, "stream": True}, leave_after=6, delay=0.01)
    assert row.outcome == "disconnected"
    assert 0 < row.completion_tokens == exchange.pieces < 20
    assert row.cost == PROMPT_TOKENS * 100 + row.completion_tokens * 400


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_before_anything_came_pays_nothing(tmp_path, stream):
    exchange, [row] = ask(tmp_path, {**CHAT, "stream": stream}, leave_after=0, delay=0.01)
    assert exchange.pieces == 0
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.cost) == ("disconnected", 0, 0, 0)


def test_what_is_refused_is_not_on_the_bill(tmp_path):
    exchange, found = ask(tmp_path, {**CHAT, "max_tokens": 100_000})
    assert exchange.status == 400
    assert [row.cost for row in found] in ([], [0])


@pytest.mark.parametrize("store", ["memory", "redis", "postgres"])
def test_many_clients_of_whom_many_leave(tmp_path, store, request):
    """The ledger's sum is what was sent, row for row nothing doubled, and the limits' buckets are settled."""
    shared = None if store == "memory" else request.getfixturevalue(f"{store}_url")
    where = {"limits_url": shared, "database_url": shared if store == "postgres" else None}
    chance = random.Random(4)
    projects = [NewProject(name, tier="developer", limits=LIMITS) for name in ("a", "b", "c")]
    tenants = make_tenants(tmp_path, projects, database_url=where["database_url"])

    async def client(app, key):
        stream = chance.random() < 0.7
        leave = chance.choice([None, None, 0, 1, 2, 5, 9])
        return await post(app, "/v1/chat/completions", key, {**CHAT, "stream": stream}, leave_after=leave)

    async def run():
        engine = FakeEngine()
        engine.answer, engine.delay = ANSWER, 0.002
        async with application(tmp_path, engine, **where) as app:
            asked = [tenants[i % 3] for i in range(200)]
            exchanges = await asyncio.gather(*(client(app, key) for _, key in asked))
            found = await rows(app)
            day = [Limit(f"{project}/developer/tokens_per_day", 1_000_000, 86_400) for project, _ in tenants]
            levels = await app.state.service.admission.limits.levels(day)
        return asked, exchanges, found, levels

    asked, exchanges, found, levels = asyncio.run(run())
    assert len(found) == len({row.id for row in found}) == 200
    sent, billed = Counter(), Counter()
    for (project, _), exchange in zip(asked, exchanges, strict=True):
        sent[project] += exchange.pieces
    for row in found:
        billed[row.project_id] += row.completion_tokens
    assert billed == sent
    assert {row.outcome for row in found} == {"completed", "disconnected"}
    # what was reserved and not used is back: missing is what was done, but for what flowed back meanwhile
    done = sum(PROMPT_TOKENS + row.generated_tokens for row in found)
    missing = sum(level.limit.capacity - level.remaining for level in levels)
    assert done - 3 * 12 * 30 <= missing <= done

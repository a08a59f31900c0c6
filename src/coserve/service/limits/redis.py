"""Limits in Redis (5 or newer, or a server that speaks like it): one round trip a call, atomic as scripts are.

Calls of many callers share one connection: those that come while others are under way are sent together, next.

All keys carry one hash tag, and so would lie on one node of a cluster; the client speaks to a single node. What
nobody needs any more expires by itself. Without persistence a restart of Redis forgets all: every bucket is full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from coserve.service.limits.bucket import UNUSED_SECONDS, Draw
from coserve.service.limits.shared import PATIENCE, How

PREFIX = "{coserve}:"

# KEYS: buckets. ARGV: how, seconds to keep one that never refills; then of each bucket its capacity, rate, amount.
# A bucket is "used at", in seconds. Answers whether it was granted, and what is used of each.
DRAW = """
local how, keep = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local used, amounts, granted = {}, {}, true

for i, key in ipairs(KEYS) do
    local capacity, rate = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
    local bucket = redis.call('GET', key)
    used[i], amounts[i] = 0, tonumber(ARGV[3 * i + 2])
    if bucket then
        local before, at = string.match(bucket, '(%S+) (%S+)')
        used[i] = math.max(0, tonumber(before) - rate * math.max(0, now - tonumber(at)))
    end
    if how == 'preset' and used[i] > 0 then amounts[i] = 0 end
    if how == 'reserve' and used[i] + amounts[i] > capacity then granted = false end
end

local answer = {granted and 1 or 0}
for i, key in ipairs(KEYS) do
    if granted and amounts[i] ~= 0 then
        local rate = tonumber(ARGV[3 * i + 1])
        used[i] = math.max(0, used[i] + amounts[i])
        if used[i] == 0 then
            redis.call('DEL', key)
        else
            local seconds = rate > 0 and math.min(used[i] / rate, 1e10) or keep
            local bucket = string.format('%.17g %.17g', used[i], now)
            redis.call('SET', key, bucket, 'PX', string.format('%.0f', math.ceil(seconds * 1000)))
        end
    end
    answer[i + 1] = string.format('%.17g', used[i])
end
return answer
"""

# KEYS: a sorted set of leases by when they end. ARGV: capacity, lease, seconds. Answers whether it is held now.
ACQUIRE = """
local key, capacity, lease, seconds = KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.17g', now))
if not redis.call('ZSCORE', key, lease) and redis.call('ZCARD', key) >= capacity then
    return 0
end
redis.call('ZADD', key, string.format('%.17g', now + seconds), lease)
local milliseconds = math.ceil(seconds * 1000)
if redis.call('PTTL', key) < milliseconds then
    redis.call('PEXPIRE', key, string.format('%.0f', milliseconds))
end
return 1
"""


class RedisBackend:
    """One Redis by its URL: `redis://`, `rediss://` or `unix://`. Raises `ValueError` for a bad one."""

    errors: tuple[type[Exception], ...] = (RedisError, OSError)

    def __init__(self, url: str):
        self._redis = Redis.from_url(
            url,
            socket_timeout=PATIENCE / 2,  # whoever waits behind a batch that is lost shall still have a try
            socket_connect_timeout=PATIENCE / 2,
            protocol=2,  # with 3, a connection that the server has closed is found out too late
            retry=Retry(NoBackoff(), 0),  # a call whose answer was lost may have had its effect: never twice
        )
        place = self._redis.connection_pool.connection_kwargs
        address = f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
        self.name = f"Redis at {place.get('path', address)}"
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []  # commands, and who wants the answers
        self._sender: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._send("PING")

    async def close(self) -> None:
        await self._redis.aclose()

    async def draw(self, how: How, draws: Sequence[Draw]) -> tuple[bool, list[float]]:
        keys = [f"{PREFIX}bucket:{draw.limit.key}" for draw in draws]
        numbers = [x for draw in draws for x in (draw.limit.capacity, draw.limit.rate, draw.amount)]
        granted, *used = await self._send("EVAL", DRAW, len(keys), *keys, how, UNUSED_SECONDS, *numbers)
        return granted == 1, [float(amount) for amount in used]

    async def acquire(self, key: str, capacity: int, lease: str, seconds: float) -> bool:
        return await self._send("EVAL", ACQUIRE, 1, f"{PREFIX}leases:{key}", capacity, lease, seconds) == 1

    async def release(self, key: str, lease: str) -> None:
        await self._send("ZREM", f"{PREFIX}leases:{key}", lease)

    async def _send(self, *command: Any) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_waiting())
        return await answer

    async def _send_waiting(self) -> None:
        while self._waiting:
            batch = [(command, answer) for command, answer in self._waiting if not answer.done()]  # not those given up
            self._waiting = []
            pipeline = self._redis.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            try:
                results = await pipeline.execute(raise_on_error=False)
            except self.errors as error:
                results = [error] * len(batch)
            for (_, answer), result in zip(batch, results, strict=True):
                _give(answer, result)


def _give(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)

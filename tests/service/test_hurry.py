"""A block that is to end ends once, however often it is told."""

import asyncio

import pytest

from coserve.service.errors import ClientGone
from coserve.service.hurry import hurry
from coserve.service.upstreams.listening import Listener


def test_twice_is_once():
    async def block():
        async with asyncio.timeout(60) as timeout:
            hurry(timeout)
            try:
                await asyncio.Event().wait()
            finally:
                hurry(timeout)

    with pytest.raises(TimeoutError):
        asyncio.run(block())


def test_a_client_that_leaves_while_time_runs_out_has_left():
    async def block():
        client = Listener()

        async def wait():
            try:
                await asyncio.Event().wait()
            finally:
                client.leave()

        await client.within(0, "a pause", wait)

    with pytest.raises(ClientGone):
        asyncio.run(block())

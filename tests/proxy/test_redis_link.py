"""When a Redis that does not answer is given up."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.redis_link import RedisAway, RedisLink
from tests.proxy.servers import own_redis


def test_a_process_that_stood_still_blames_no_redis():
    """Its own lateness is not Redis's: the answer is there and is read before the link is given up."""

    async def stand_still() -> None:
        link = RedisLink(server.url, timeout=0.3)
        await link.start()
        assert link.up
        answer = asyncio.ensure_future(link.call(b"PING"))
        # The question leaves.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.6)  # noqa: ASYNC251 - nothing else may run meanwhile
        link.check()
        assert await answer == b"PONG"
        assert link.up
        await link.stop()

    with own_redis() as server:
        asyncio.run(stand_still())


def test_a_frozen_redis_is_given_up():
    async def wait_for_it() -> float:
        link = RedisLink(server.url, timeout=0.3)
        await link.start()
        assert link.up
        server.freeze()
        started = time.monotonic()
        answer = asyncio.ensure_future(link.call(b"PING"))
        while not answer.done():
            await asyncio.sleep(0.05)
            link.check()
        waited = time.monotonic() - started
        with pytest.raises(RedisAway, match=r"no answer within 0\.3 s"):
            await answer
        assert not link.up
        server.thaw()
        await link.stop()
        return waited

    with own_redis() as server:
        assert asyncio.run(wait_for_it()) >= 0.3

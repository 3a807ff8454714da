"""The gateway's way to PostgreSQL: bounded, and to be cancelled at any moment."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from django.db import OperationalError

from proxy.database import Database, DatabaseAway


@pytest.fixture
def database():
    found = Database(threads=1, timeout=20, backlog=2)
    yield found
    found.stop()


@pytest.mark.parametrize("turns", range(8))
def test_a_cancellation_in_the_moment_of_the_answer_is_none_the_less_one(database, turns):
    """Else a loop that reads now and then goes on when the gateway stops, which waits for it for ever."""
    answered = threading.Event()

    async def cancelled_late() -> bool:
        task = asyncio.get_running_loop().create_task(database.run(answered.set))
        await asyncio.sleep(0)
        assert answered.wait(20)
        # The loop stands still until the answer is on its way to it, and then takes so many turns.
        time.sleep(0.05)  # noqa: ASYNC251
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            return True
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancelled_late())


def test_who_cannot_be_asked_in_time_is_away():
    end = threading.Event()
    database = Database(threads=1, timeout=0.05, backlog=2)
    try:
        with pytest.raises(DatabaseAway, match="in time"):
            asyncio.run(database.run(end.wait))
    finally:
        end.set()
        database.stop()


def test_too_many_questions_are_not_asked(database):
    end = threading.Event()

    async def ask() -> None:
        waiting = [asyncio.ensure_future(database.run(end.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(DatabaseAway, match="too many"):
            await database.run(end.wait)
        end.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await database.run(end.wait) is True

    asyncio.run(ask())


def test_a_connection_that_fails_is_an_outage_and_a_fault_is_a_fault(database):
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(DatabaseAway, match="gone"):
        asyncio.run(database.run(fail, OperationalError("gone")))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(database.run(fail, ZeroDivisionError()))

"""PostgreSQL for the gateway: a few threads of its own, every wait bounded.

Django's ORM is synchronous; the gateway's event loop must never wait for it. These threads are few, so that a
flood of unknown tokens takes a small share of the connection pool and no more.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, close_old_connections

P = ParamSpec("P")
T = TypeVar("T")


class DatabaseAway(Exception):
    """PostgreSQL does not answer, or too many questions wait for it already."""


class Database:
    """Runs functions that use the ORM. ``timeout`` (seconds) bounds the wait, not the function."""

    def __init__(self, *, threads: int, timeout: float, backlog: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="gateway-db")
        self._timeout = timeout
        self._backlog = backlog
        self._waiting = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises :class:`DatabaseAway`, and whatever else the function raises."""
        if self._waiting >= self._backlog:
            raise DatabaseAway("too many waiting")
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, functools.partial(_in_thread, function, args, kwargs)
        )
        work.add_done_callback(self._done)
        try:
            # Not wait_for: before Python 3.12 it forgets that the task was cancelled in the moment of the answer, and
            # whoever stops the gateway would wait for that task for ever.
            async with asyncio.timeout(self._timeout):
                return await asyncio.shield(work)
        except TimeoutError as exc:
            raise DatabaseAway("no answer in time") from exc
        except (InterfaceError, OperationalError) as exc:
            raise DatabaseAway(str(exc)) from exc

    def _done(self, work: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not work.cancelled():
            # Whoever asked may have given up; the exception is then nobody's.
            work.exception()

    def stop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def _in_thread(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    # As around a request: gives the connection back to the pool, drops a dead one.
    close_old_connections()
    try:
        return function(*args, **kwargs)
    finally:
        close_old_connections()

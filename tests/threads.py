"""Real threads for race tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from django.db import connection, connections


class Meeting:
    """Where threads wait until so many have come; whoever comes later passes through."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._lock = threading.Lock()
        self._complete = threading.Event()

    def wait(self) -> None:
        with self._lock:
            self._missing -= 1
            if self._missing <= 0:
                self._complete.set()
        if not self._complete.wait(60):
            raise TimeoutError("too few threads have come")


def run_at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Call ``call(0..count-1)``, each in a thread of its own with its own connection, all released together.

    Returns each call's result, or the exception it raised, in order.
    """
    start = threading.Barrier(count, timeout=60)

    def run(number: int) -> Any:
        start.wait()
        try:
            return call(number)
        except Exception as exc:
            return exc
        finally:
            connections.close_all()

    with _waiting_for_connections(60), ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@contextlib.contextmanager
def _waiting_for_connections(seconds: float) -> Iterator[None]:
    """Let whoever finds the pool of connections empty wait longer: how fast it gets empty is the machine's affair."""
    # Looked up, not asked for: what uses no database must not make one.
    pool = cast(Any, connection)._connection_pools.get(connection.alias)
    if pool is None:
        yield
        return
    before, pool.timeout = pool.timeout, seconds
    try:
        yield
    finally:
        pool.timeout = before

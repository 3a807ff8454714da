"""Real threads for race tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import connections


def run_at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Call ``call(0..count-1)``, each in a thread of its own with its own connection, all released together.

    Returns each call's result, or the exception it raised, in order.
    """
    start = threading.Barrier(count, timeout=30)

    def run(number: int) -> Any:
        start.wait()
        try:
            return call(number)
        except Exception as exc:
            return exc
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))

"""The transaction of a flow: opened once, by the outermost, and repeated when the database says so."""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from django.db import OperationalError, connection, transaction

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: SQLSTATE of serialization_failure and deadlock_detected: the transaction was rolled back, repeating it is right.
RETRIABLE = frozenset({"40001", "40P01"})
ATTEMPTS = 5
#: Seconds; doubled on each attempt, and drawn at random below that so that two victims do not meet again.
BACKOFF = 0.02


def is_retriable(exc: BaseException) -> bool:
    """Whether the database rolled back for a reason that is gone when the transaction is repeated."""
    return isinstance(exc, OperationalError) and getattr(exc.__cause__, "sqlstate", None) in RETRIABLE


def run_in_transaction(flow: Callable[[], R]) -> R:
    """Run a flow in a durable transaction of its own, up to :data:`ATTEMPTS` times on deadlock.

    Inside another transaction the flow joins it under a savepoint, and repeating is left to whoever opened it: a
    deadlock rolls the whole transaction back, not the savepoint.
    The flow must keep effects outside the database for ``on_commit``.
    """
    if connection.in_atomic_block:
        with transaction.atomic():
            return flow()
    for attempt in range(1, ATTEMPTS):
        try:
            with transaction.atomic(durable=True):
                return flow()
        except OperationalError as exc:
            if not is_retriable(exc):
                raise
            logger.warning("Transaction rolled back by the database, attempt %d of %d", attempt, ATTEMPTS)
            time.sleep(random.uniform(0, BACKOFF * 2**attempt))  # noqa: S311 - spreads load, guards nothing
    with transaction.atomic(durable=True):
        return flow()


def in_transaction(flow: Callable[P, R]) -> Callable[P, R]:
    """Decorate a service that is a whole flow; see :func:`run_in_transaction`."""

    @functools.wraps(flow)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return run_in_transaction(lambda: flow(*args, **kwargs))

    return wrapper

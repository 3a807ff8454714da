"""The synchronous Redis client of the control plane, with bounded waits.

Callers let :class:`redis.exceptions.RedisError` rise; the error handler answers 503 for it.
"""

from __future__ import annotations

from functools import lru_cache

import redis
import redis.exceptions
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

_AWAY = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
)


def is_away(exc: BaseException) -> bool:
    """Whether Redis is not there, or there but unable to write: a replica after a failover, or out of memory."""
    if isinstance(exc, _AWAY):
        return True
    # Before version 7 a script's own error wraps the cause.
    return isinstance(exc, redis.exceptions.ResponseError) and any(
        cause in str(exc) for cause in (" -OOM ", " -READONLY ")
    )


def client() -> redis.Redis:
    """Return the process's client. It reconnects by itself; a call waits at most ``REDIS_TIMEOUT`` seconds."""
    return _client(settings.REDIS_URL, settings.REDIS_TIMEOUT)


@lru_cache(maxsize=4)
def _client(url: str, timeout: float) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # One immediate retry: the first call after Redis restarted meets a dead pooled connection.
        retry=Retry(NoBackoff(), 1),
        max_connections=256,
    )


def key(*parts: str) -> str:
    """Return the parts as one key under this deployment's prefix."""
    return settings.REDIS_PREFIX + ":".join(parts)

"""The synchronous Redis client of the control plane, with bounded waits.

Callers let :class:`redis.exceptions.RedisError` rise; the error handler answers 503 for it.
"""

from __future__ import annotations

from functools import lru_cache

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry


@lru_cache(maxsize=1)
def client() -> redis.Redis:
    """Return the process's client. It reconnects by itself; a call waits at most ``REDIS_TIMEOUT`` seconds."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.REDIS_TIMEOUT,
        socket_connect_timeout=settings.REDIS_TIMEOUT,
        # One immediate retry: the first call after Redis restarted meets a dead pooled connection.
        retry=Retry(NoBackoff(), 1),
        max_connections=256,
    )


def key(*parts: str) -> str:
    """Return the parts as one key under this deployment's prefix."""
    return settings.REDIS_PREFIX + ":".join(parts)

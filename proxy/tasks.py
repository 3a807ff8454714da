"""Background work of the gateway. Every task is one service call and safe to run twice."""

from __future__ import annotations

import logging
from datetime import timedelta

import redis.exceptions
from celery import shared_task
from django.conf import settings
from django.db import InterfaceError, OperationalError

from proxy import administration, services

logger = logging.getLogger(__name__)

#: A neighbour that is away is met again at the next run; a traceback every few seconds would help nobody.
_AWAY = (redis.exceptions.RedisError, OperationalError, InterfaceError)

SCHEDULE = {
    "proxy-flush-metering": {"task": "proxy.tasks.flush_metering", "schedule": 3.0, "options": {"expires": 10}},
    "proxy-store-activations": {"task": "proxy.tasks.store_activations", "schedule": 5.0, "options": {"expires": 10}},
    "proxy-re-evict-recent": {"task": "proxy.tasks.re_evict_recent", "schedule": 15.0, "options": {"expires": 30}},
    "proxy-publish-switch": {"task": "proxy.tasks.publish_switch", "schedule": 15.0, "options": {"expires": 30}},
    "proxy-close-sessions": {"task": "proxy.tasks.close_sessions", "schedule": 30.0, "options": {"expires": 60}},
    "proxy-forget-batches": {"task": "proxy.tasks.forget_batches", "schedule": 3600.0},
}


@shared_task
def flush_metering() -> int:
    """Move counts from Redis to PostgreSQL until none are left."""
    moved = 0
    try:
        while taken := services.flush_meter_stream():
            moved += taken
    except _AWAY as exc:
        logger.warning("Counts wait in Redis: %s", exc)
    return moved


@shared_task
def store_activations() -> int:
    """Write activations that the gateway noted while PostgreSQL was away."""
    try:
        return services.store_pending_activations(older_than=timedelta(seconds=5))
    except _AWAY as exc:
        logger.warning("Activations wait in Redis: %s", exc)
        return 0


@shared_task
def re_evict_recent() -> int:
    """Evict once more what changed since the oldest credential that Redis may still hold was read.

    A Redis that was away when a token was revoked can come back with what it knew before, however long that took.
    """
    try:
        return services.evict_recent_changes(since=timedelta(seconds=settings.GATEWAY["cache_seconds"] + 60))
    except _AWAY as exc:
        logger.warning("Evictions wait: %s", exc)
        return 0


@shared_task
def publish_switch() -> None:
    """Have Redis know whether the gateway is closed, whatever it forgot."""
    try:
        administration.publish_switch()
    except _AWAY as exc:
        logger.warning("The gateway's switch waits: %s", exc)


@shared_task
def close_sessions() -> int:
    """End idle sessions and those of ended tokens."""
    return services.close_sessions()


@shared_task
def forget_batches() -> int:
    """Delete ids of batches older than anything that could still be sent."""
    return services.forget_old_batches(older_than=timedelta(days=2))

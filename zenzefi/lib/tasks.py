"""Background work that belongs to no app."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.signals import worker_ready

from zenzefi.lib import health
from zenzefi.lib.idempotency import forget_old_records

SCHEDULE = {
    "idempotency-forget": {"task": "zenzefi.lib.tasks.forget_idempotency_records", "schedule": 3600.0},
    "heartbeat": {
        "task": "zenzefi.lib.tasks.heartbeat",
        "schedule": float(health.HEARTBEAT_SECONDS),
        # One that waited in the queue says nothing about now.
        "options": {"expires": health.HEARTBEAT_SECONDS},
    },
}


@shared_task
def forget_idempotency_records() -> int:
    """Delete the stored answers whose time is over."""
    return forget_old_records()


@shared_task
def heartbeat() -> None:
    """Tell ``/health`` that beat sends and a worker works."""
    health.record_heartbeat()


@worker_ready.connect
def _first_heartbeat(**_: Any) -> None:
    """Beat's first one comes an interval after its start; until then a worker's own start is news enough."""
    health.record_heartbeat()

"""Background work that belongs to no app."""

from __future__ import annotations

from celery import shared_task

from zenzefi.lib.idempotency import forget_old_records

SCHEDULE = {"idempotency-forget": {"task": "zenzefi.lib.tasks.forget_idempotency_records", "schedule": 3600.0}}


@shared_task
def forget_idempotency_records() -> int:
    """Delete the stored answers whose time is over."""
    return forget_old_records()

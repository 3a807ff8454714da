"""Background work of accounts."""

from __future__ import annotations

from celery import shared_task

from accounts import services

SCHEDULE = {
    "accounts-forget-ended-sessions": {"task": "accounts.tasks.forget_ended_sessions", "schedule": 3600.0},
}


@shared_task
def forget_ended_sessions() -> int:
    """Delete sessions that ended long ago."""
    return services.forget_ended_sessions()

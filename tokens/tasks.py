"""Background work on access tokens."""

from __future__ import annotations

from celery import shared_task

from tokens import services

SCHEDULE = {"tokens-expire": {"task": "tokens.tasks.expire_tokens", "schedule": 30.0}}

_BATCH = 500


@shared_task
def expire_tokens() -> int:
    """Record the end of every token whose time ran out; safe to run twice, also at once."""
    total = 0
    while recorded := services.record_expiries(limit=_BATCH):
        total += recorded
    return total

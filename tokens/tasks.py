"""Background work on access tokens."""

from __future__ import annotations

from celery import shared_task

from tokens import services

SCHEDULE = {
    "tokens-expire": {"task": "tokens.tasks.expire_tokens", "schedule": 30.0},
    "tokens-return-gifts": {"task": "tokens.tasks.return_expired_gifts", "schedule": 30.0},
}

_BATCH = 500


@shared_task
def expire_tokens() -> int:
    """Record the end of every token whose time ran out; safe to run twice, also at once."""
    total = 0
    while recorded := services.record_expiries(limit=_BATCH):
        total += recorded
    return total


@shared_task
def return_expired_gifts() -> int:
    """Hand every token back whose gift nobody claimed in time; safe to run twice, also at once."""
    total = 0
    while returned := services.return_expired_gifts(limit=_BATCH):
        total += returned
    return total

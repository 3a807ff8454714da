"""Background work on access tokens."""

from __future__ import annotations

from celery import shared_task

from tokens import services

SCHEDULE = {
    "tokens-expire": {"task": "tokens.tasks.expire_tokens", "schedule": 30.0},
    "tokens-renew": {"task": "tokens.tasks.renew_tokens", "schedule": 60.0, "options": {"expires": 60}},
    "tokens-take-over": {"task": "tokens.tasks.take_over", "schedule": 30.0, "options": {"expires": 30}},
    "tokens-renew-tiers": {"task": "tokens.tasks.renew_tiers", "schedule": 60.0, "options": {"expires": 60}},
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
def renew_tokens() -> int:
    """Buy the successors that are due; returns how many were bought."""
    bought = 0
    while claimed := services.claim_due_renewals():
        bought += sum(services.renew_token(token_id=token_id) is not None for token_id in claimed)
    return bought


@shared_task
def take_over() -> int:
    """Write down which successors have taken over; the gateway does not wait for it."""
    total = 0
    while settled := services.take_over_due(limit=_BATCH):
        total += settled
    return total


@shared_task
def renew_tiers() -> int:
    """Take the price of the months that begin; returns how many tiers go on."""
    renewed = 0
    while claimed := services.claim_due_subscriptions():
        renewed += sum(services.renew_subscription(subscription_id=one) for one in claimed)
    return renewed


@shared_task
def return_expired_gifts() -> int:
    """Hand every token back whose gift nobody claimed in time; safe to run twice, also at once."""
    total = 0
    while returned := services.return_expired_gifts(limit=_BATCH):
        total += returned
    return total

"""The wallet's background work."""

from __future__ import annotations

import logging

from celery import shared_task
from celery.schedules import crontab

from wallet.payments import services as payments
from wallet.reconciliation import reconcile, remember

logger = logging.getLogger(__name__)

SCHEDULE = {
    "wallet-reconcile": {"task": "wallet.tasks.reconcile_ledger", "schedule": crontab(hour="3", minute="17")},
    "wallet-poll-payments": {"task": "wallet.tasks.poll_payments", "schedule": 15.0},
    "wallet-retry-payment-events": {"task": "wallet.tasks.retry_payment_events", "schedule": 60.0},
    "wallet-resume-refunds": {"task": "wallet.tasks.resume_payment_refunds", "schedule": 60.0},
}


@shared_task
def reconcile_ledger() -> int:
    """Prove the ledger, keep the result for ``/metrics``, and return how many rows contradict it."""
    outcomes = reconcile()
    for outcome in outcomes:
        for drift in outcome.drifts[:20]:
            logger.error("Ledger drift: %s: %s: %s", outcome.name, drift.row, drift.problem)
    remember(outcomes)
    return sum(len(outcome.drifts) for outcome in outcomes)


@shared_task
def poll_payments() -> int:
    """Ask the providers about payments that stay pending; safe to run twice, also at once."""
    return payments.poll_due_payments()


@shared_task
def retry_payment_events() -> int:
    """Carry out notifications that could not be when they came."""
    return payments.retry_due_events()


@shared_task
def resume_payment_refunds() -> int:
    """Finish refunds whose outcome stayed unknown."""
    return payments.resume_refunds()

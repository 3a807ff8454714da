"""The wallet's background work."""

from __future__ import annotations

import logging

from celery import shared_task
from celery.schedules import crontab

from wallet.reconciliation import reconcile, remember

logger = logging.getLogger(__name__)

SCHEDULE = {
    "wallet-reconcile": {"task": "wallet.tasks.reconcile_ledger", "schedule": crontab(hour="3", minute="17")},
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

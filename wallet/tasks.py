"""Background work on payments."""

from __future__ import annotations

from celery import shared_task

from wallet.payments import services

SCHEDULE = {
    "wallet-poll-payments": {"task": "wallet.tasks.poll_payments", "schedule": 15.0},
    "wallet-retry-payment-events": {"task": "wallet.tasks.retry_payment_events", "schedule": 60.0},
    "wallet-resume-refunds": {"task": "wallet.tasks.resume_payment_refunds", "schedule": 60.0},
}


@shared_task
def poll_payments() -> int:
    """Ask the providers about payments that stay pending; safe to run twice, also at once."""
    return services.poll_due_payments()


@shared_task
def retry_payment_events() -> int:
    """Carry out notifications that could not be when they came."""
    return services.retry_due_events()


@shared_task
def resume_payment_refunds() -> int:
    """Finish refunds whose outcome stayed unknown."""
    return services.resume_refunds()

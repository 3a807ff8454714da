"""Reads of payments and currencies."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import QuerySet

from wallet.exceptions import PaymentNotFound
from wallet.models import ExchangeRate, Payment
from zenzefi.lib import clock


def payments_of(user: Any) -> QuerySet[Payment]:
    """Return the user's payments, newest first."""
    return Payment.objects.filter(user=user).select_related("currency").order_by("-created_at", "-id")


def payment_of(user: Any, payment_id: uuid.UUID) -> Payment:
    """Return one of the user's payments. Raises :class:`PaymentNotFound`, also when it is somebody else's."""
    payment = payments_of(user).filter(pk=payment_id).first()
    if payment is None:
        raise PaymentNotFound
    return payment


def mock_payment(payment_id: uuid.UUID) -> Payment:
    """Return a payment of the mock provider. Raises :class:`PaymentNotFound`."""
    payment = Payment.objects.filter(pk=payment_id, provider="mock").select_related("currency").first()
    if payment is None:
        raise PaymentNotFound
    return payment


def current_rates() -> QuerySet[ExchangeRate]:
    """Return today's rate of every currency that is sold, by code."""
    latest = (
        ExchangeRate.objects.filter(currency__is_active=True, effective_from__lte=clock.now())
        .order_by("currency_id", "-effective_from")
        .distinct("currency_id")
    )
    return ExchangeRate.objects.filter(pk__in=latest.values("pk")).select_related("currency").order_by("currency_id")

"""A provider that takes no money: for development, demonstrations and tests. Production refuses to start with it.

Its memory is the events it sent, so it can be asked again like a real one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.urls import reverse

from wallet.exceptions import InvalidNotification, MalformedNotification
from wallet.models import Payment, PaymentDispute, PaymentEvent, PaymentRefund
from wallet.payments.providers.base import (
    Created,
    DisputeState,
    Finding,
    Notification,
    PaymentProvider,
    ProviderState,
    Told,
    in_digits,
)
from zenzefi.lib import clock

SIGNATURE_HEADER = "X-Mock-Signature"
#: As long as a payment page of the real ones stays open.
PAGE_LIFETIME = timedelta(hours=24)

SUCCEEDED = "payment.succeeded"
CANCELED = "payment.canceled"
REFUNDED = "refund.succeeded"
DISPUTED = "dispute.updated"


class MockProvider(PaymentProvider):
    name = "mock"

    def create(self, payment: Payment) -> Created:
        query = urlencode({"payment_id": payment.pk})
        return Created(
            provider_payment_id=f"mock_{payment.pk}",
            payment_url=f"{settings.BACKEND_URL}{reverse('mock-payment')}?{query}",
        )

    def fetch(self, payment: Payment) -> ProviderState:
        told, refunded, disputes = Told.PENDING, Decimal(0), {}
        for event in PaymentEvent.objects.filter(provider=self.name, payment=payment).order_by("pk"):
            state = _state(payment, event.payload)
            if state.told is not Told.UNSAID:
                told = state.told
            refunded = max(refunded, state.refunded)
            disputes.update({dispute.id: dispute for dispute in state.disputes})
        if told is Told.PENDING and payment.created_at + PAGE_LIFETIME < clock.now():
            told = Told.CANCELED
        return ProviderState(
            told=told,
            amount=payment.amount,
            currency=payment.currency_id,
            refunded=refunded,
            disputes=tuple(disputes.values()),
        )

    def refund(self, payment: Payment, refund: PaymentRefund) -> str:
        event = notification(
            payment,
            REFUNDED,
            event_id=f"refund:{refund.pk}",
            refunded=in_digits(payment.refunded_amount + refund.amount, payment.currency),
        )
        PaymentEvent.objects.get_or_create(
            provider=self.name,
            event_id=event.event_id,
            defaults={"kind": event.kind, "payload": event.payload, "payment": payment, "processed_at": clock.now()},
        )
        return f"mock_refund_{refund.pk}"

    def authenticate(self, *, body: bytes, headers: Mapping[str, str], address: str) -> Notification:
        if not hmac.compare_digest(sign(body), headers.get(SIGNATURE_HEADER, "")):
            raise InvalidNotification
        try:
            payload = json.loads(body)
            return Notification(event_id=payload["id"], kind=payload["type"], payload=payload)
        except (ValueError, KeyError, TypeError):
            raise MalformedNotification from None

    def interpret(self, payload: dict[str, Any]) -> Finding | None:
        try:
            payment_id = uuid.UUID(payload["payment_id"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        payment = Payment.objects.select_related("currency").filter(pk=payment_id, provider=self.name).first()
        if payment is None:
            return None
        return Finding(payment=payment, state=_state(payment, payload))


def sign(body: bytes) -> str:
    """Return the signature of a notification's exact bytes, in hexadecimal."""
    key = hmac.digest(settings.SECRET_KEY.encode(), b"mock payment notifications", "sha256")
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def notification(payment: Payment, kind: str, *, event_id: str, **facts: Any) -> Notification:
    """Return the message that the mock provider would send about a payment."""
    payload = {"id": event_id, "type": kind, "payment_id": str(payment.pk), **facts}
    if kind == SUCCEEDED:
        payload.setdefault("amount", in_digits(payment.amount, payment.currency))
        payload.setdefault("currency", payment.currency_id)
    return Notification(event_id=event_id, kind=kind, payload=payload)


def _state(payment: Payment, payload: dict[str, Any]) -> ProviderState:
    try:
        match payload.get("type"):
            case "payment.succeeded":
                return ProviderState(
                    told=Told.SUCCEEDED, amount=Decimal(payload["amount"]), currency=payload["currency"]
                )
            case "payment.canceled":
                return ProviderState(told=Told.CANCELED)
            case "refund.succeeded":
                return ProviderState(told=Told.UNSAID, refunded=Decimal(payload["refunded"]))
            case "dispute.updated":
                dispute = DisputeState(
                    id=payload["dispute"],
                    outcome=PaymentDispute.Outcome(payload["outcome"]).value,
                    amount=Decimal(payload.get("amount", payment.amount)),
                )
                return ProviderState(told=Told.UNSAID, disputes=(dispute,))
    except (KeyError, TypeError, ValueError, InvalidOperation):
        raise MalformedNotification from None
    return ProviderState(told=Told.UNSAID)

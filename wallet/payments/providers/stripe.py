"""Stripe: Checkout Sessions, signed events, refunds, disputes.

Events are read as they are, their signature being proof enough; they may come late, twice and in any order, which
:func:`wallet.payments.services.apply_provider_state` is made for. Amounts are in minor units, refunded amounts
cumulative.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import requests
import stripe
from django.conf import settings
from django.utils.translation import gettext as _

from wallet.exceptions import InvalidNotification, MalformedNotification, ProviderRefused, ProviderUnavailable
from wallet.models import Currency, Payment, PaymentDispute, PaymentRefund
from wallet.payments.providers.base import (
    Created,
    DisputeState,
    Finding,
    Notification,
    PaymentProvider,
    ProviderState,
    Told,
    from_minor_units,
    to_minor_units,
)

#: Inquiries (``warning_*``) and prevented disputes take no money.
_OUTCOMES = {
    "needs_response": PaymentDispute.Outcome.OPEN.value,
    "under_review": PaymentDispute.Outcome.OPEN.value,
    "lost": PaymentDispute.Outcome.LOST.value,
    "won": PaymentDispute.Outcome.WON.value,
}


@cache
def _client(secret_key: str, api_base: str, timeout: float) -> stripe.StripeClient:
    session = requests.Session()
    # No proxy or credentials from the environment.
    session.trust_env = False
    return stripe.StripeClient(
        secret_key,
        base_addresses={"api": api_base},
        # Idempotency keys make the repetition safe.
        max_network_retries=1,
        http_client=stripe.RequestsClient(timeout=timeout, session=session),
    )


class StripeProvider(PaymentProvider):
    name = "stripe"

    @property
    def _api(self) -> Any:
        return _client(settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE, settings.PAYMENT_PROVIDER_TIMEOUT).v1

    def create(self, payment: Payment) -> Created:
        ours = {"payment_id": str(payment.pk)}
        session = _call(
            self._api.checkout.sessions.create,
            params={
                "mode": "payment",
                "client_reference_id": str(payment.pk),
                "customer_email": payment.user.email,
                "line_items": [
                    {
                        "quantity": 1,
                        "price_data": {
                            "currency": payment.currency_id.lower(),
                            "unit_amount": to_minor_units(payment.amount, payment.currency),
                            "product_data": {"name": _("%(amount)s ZNC") % {"amount": payment.amount_znc}},
                        },
                    }
                ],
                "metadata": ours,
                # Copied to the charge, so that refunds can be matched whatever arrives first.
                "payment_intent_data": {"metadata": ours},
                "success_url": payment.return_url,
                "cancel_url": payment.return_url,
            },
            options={"idempotency_key": f"payment-{payment.pk}"},
        )
        return Created(
            provider_payment_id=session["id"],
            payment_url=session["url"],
            reference=_id_of(session.get("payment_intent")),
        )

    def fetch(self, payment: Payment) -> ProviderState:
        session = _call(
            self._api.checkout.sessions.retrieve,
            payment.provider_payment_id,
            params={"expand": ["payment_intent.latest_charge"]},
        )
        told = _session_state(session, payment.currency)
        intent = session.get("payment_intent")
        if told.told is Told.PENDING and session["status"] == "complete" and _has_failed(intent):
            return ProviderState(told=Told.CANCELED, provider_payment_id=session["id"])
        if told.told is not Told.SUCCEEDED or not intent:
            return told
        charge = intent.get("latest_charge") or {}
        disputes = _call(self._api.disputes.list, params={"payment_intent": intent["id"], "limit": 100})
        return ProviderState(
            told=told.told,
            amount=told.amount,
            currency=told.currency,
            refunded=from_minor_units(charge.get("amount_refunded") or 0, payment.currency),
            disputes=_disputes(disputes["data"], payment.currency),
            provider_payment_id=session["id"],
            reference=intent["id"],
        )

    def refund(self, payment: Payment, refund: PaymentRefund) -> str:
        made = _call(
            self._api.refunds.create,
            params={
                "payment_intent": payment.provider_reference,
                "amount": to_minor_units(refund.amount, payment.currency),
                "metadata": {"payment_id": str(payment.pk), "refund_id": str(refund.pk)},
            },
            options={"idempotency_key": f"refund-{refund.pk}"},
        )
        if made["status"] in {"failed", "canceled"}:
            raise ProviderRefused
        return str(made["id"])

    def authenticate(self, *, body: bytes, headers: Mapping[str, str], address: str) -> Notification:
        try:
            event = stripe.Webhook.construct_event(
                body,
                headers.get("Stripe-Signature"),
                settings.STRIPE_WEBHOOK_SECRET,
                api_key=settings.STRIPE_SECRET_KEY,
            )
            payload = event.to_dict(for_json=True)
            return Notification(event_id=payload["id"], kind=payload["type"], payload=payload)
        except stripe.SignatureVerificationError:
            raise InvalidNotification from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MalformedNotification from None

    def interpret(self, payload: dict[str, Any]) -> Finding | None:
        try:
            subject, kind = payload["data"]["object"], payload["type"]
            if kind.startswith("checkout.session."):
                payment = _payment(subject, session=subject["id"])
                return None if payment is None else Finding(payment, _session_event(kind, subject, payment.currency))
            if kind != "charge.refunded" and not kind.startswith("charge.dispute."):
                return None
            payment = self._payment_of_charge(subject)
            if payment is None:
                return None
            if kind == "charge.refunded":
                refunded = from_minor_units(subject["amount_refunded"], payment.currency)
                state = ProviderState(told=Told.UNSAID, refunded=refunded, reference=_id_of(subject["payment_intent"]))
                return Finding(payment, state)
            disputes = _disputes([subject], payment.currency)
            return Finding(payment, ProviderState(told=Told.UNSAID, disputes=disputes)) if disputes else None
        except (KeyError, TypeError, AttributeError):
            raise MalformedNotification from None

    def _payment_of_charge(self, subject: Mapping[str, Any]) -> Payment | None:
        """Return the payment behind a charge or a dispute, which come with the PaymentIntent's id."""
        intent_id = _id_of(subject.get("payment_intent"))
        payment = _payment(subject, intent=intent_id)
        if payment is None and intent_id:
            # Told before the session's own event: the PaymentIntent knows whose it is.
            intent = _call(self._api.payment_intents.retrieve, intent_id)
            payment = _payment(intent, intent=intent_id)
        return payment


def _payment(subject: Mapping[str, Any], *, session: str = "", intent: str = "") -> Payment | None:
    payments = Payment.objects.select_related("currency", "user").filter(provider=StripeProvider.name)
    try:
        named = uuid.UUID((subject.get("metadata") or {}).get("payment_id", ""))
    except ValueError:
        named = None
    if named is not None and (payment := payments.filter(pk=named).first()) is not None:
        return payment
    if session and (payment := payments.filter(provider_payment_id=session).first()) is not None:
        return payment
    return payments.filter(provider_reference=intent).first() if intent else None


def _session_event(kind: str, session: Mapping[str, Any], currency: Currency) -> ProviderState:
    if kind == "checkout.session.async_payment_failed":
        # The session stays complete and unpaid for ever.
        return ProviderState(told=Told.CANCELED, provider_payment_id=session["id"])
    return _session_state(session, currency)


def _session_state(session: Mapping[str, Any], currency: Currency) -> ProviderState:
    told = Told.PENDING
    if session["payment_status"] == "paid":
        told = Told.SUCCEEDED
    elif session["status"] == "expired":
        told = Told.CANCELED
    return ProviderState(
        told=told,
        amount=from_minor_units(session["amount_total"], currency),
        currency=session["currency"].upper(),
        provider_payment_id=session["id"],
        reference=_id_of(session.get("payment_intent")),
    )


def _has_failed(intent: Mapping[str, Any] | None) -> bool:
    """Whether a method that takes days did not pay after all; the session stays complete and unpaid then."""
    return intent is not None and intent["status"] in {"requires_payment_method", "canceled"}


def _disputes(disputes: Iterable[Mapping[str, Any]], currency: Currency) -> tuple[DisputeState, ...]:
    return tuple(
        DisputeState(
            id=dispute["id"],
            outcome=_OUTCOMES[dispute["status"]],
            amount=from_minor_units(dispute["amount"], currency),
        )
        for dispute in disputes
        if dispute["status"] in _OUTCOMES
    )


def _id_of(reference: Any) -> str:
    """Return the id of what Stripe gives either as an id or, expanded, as the object."""
    if not reference:
        return ""
    return reference if isinstance(reference, str) else str(reference["id"])


def _call(operation: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = operation(*args, **kwargs).to_dict(for_json=True)
        return answer
    except (
        stripe.APIConnectionError,
        stripe.RateLimitError,
        stripe.AuthenticationError,
        stripe.PermissionError,
    ) as exc:
        raise ProviderUnavailable from exc
    except stripe.StripeError as exc:
        if exc.http_status is not None and 400 <= exc.http_status < 500 and exc.http_status != 409:
            raise ProviderRefused from exc
        raise ProviderUnavailable from exc

"""YooKassa: payments captured at once, refunds, and notifications that prove nothing.

A notification carries no signature, so it is a hint only: the payment it names is asked for again. Before that the
sender's address must be YooKassa's, which keeps others from making us ask.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import requests
import yookassa
from django.conf import settings
from django.utils.translation import gettext as _
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from yookassa.client import ApiClient
from yookassa.domain.exceptions import (
    ApiError,
    BadRequestError,
    ForbiddenError,
    GoneError,
    NotFoundError,
)
from yookassa.domain.notification import WebhookNotificationFactory
from yookassa.domain.response import PaymentResponse

from wallet.exceptions import InvalidNotification, MalformedNotification, ProviderRefused, ProviderUnavailable
from wallet.models import Currency, Payment, PaymentRefund
from wallet.payments.providers.base import (
    Created,
    Finding,
    Notification,
    PaymentProvider,
    ProviderState,
    Told,
    in_digits,
)

_TOLD = {
    "pending": Told.PENDING,
    "waiting_for_capture": Told.PENDING,
    "succeeded": Told.SUCCEEDED,
    "canceled": Told.CANCELED,
}


#: 202 means "still working on it, send the same again"; the idempotence key makes that safe.
_REPEAT = Retry(
    total=2, connect=0, read=0, redirect=0, backoff_factor=0.5, status_forcelist=[202], allowed_methods=["POST"]
)


class _BoundedSession(requests.Session):
    """The SDK sets no timeout and believes proxies of the environment."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        for scheme in ("https://", "http://"):
            self.mount(scheme, HTTPAdapter(max_retries=_REPEAT))

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", settings.PAYMENT_PROVIDER_TIMEOUT)
        kwargs.setdefault("allow_redirects", False)
        return super().request(*args, **kwargs)


class _Client(ApiClient):
    def __init__(self) -> None:
        yookassa.Configuration.configure(
            settings.YOOKASSA_SHOP_ID, settings.YOOKASSA_SECRET_KEY, api_url=settings.YOOKASSA_API_URL
        )
        super().__init__()

    def get_session(self) -> requests.Session:
        return _BoundedSession()

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().execute(*args, **kwargs)
        except requests.RequestException as exc:
            if exc.response is None:
                # The SDK reads the answer of every failed call; without one it would fail on that instead.
                exc.response = requests.Response()
                exc.response.status_code = 503
                exc.response._content = b"{}"
            raise


class _Payment(yookassa.Payment):
    def __init__(self) -> None:
        self.client = _Client()


class _Refund(yookassa.Refund):
    def __init__(self) -> None:
        self.client = _Client()


class YooKassaProvider(PaymentProvider):
    name = "yookassa"

    def takes(self, currency: Currency) -> bool:
        return currency.code in settings.YOOKASSA_CURRENCIES

    def create(self, payment: Payment) -> Created:
        made = _call(
            _Payment.create,
            {
                "amount": _amount(payment.amount, payment.currency),
                "capture": True,
                "confirmation": {"type": "redirect", "return_url": payment.return_url},
                "description": _("%(amount)s ZNC") % {"amount": payment.amount_znc},
                "metadata": {"payment_id": str(payment.pk)},
            },
            str(payment.pk),
        )
        if made.confirmation is None:
            raise ProviderUnavailable
        return Created(provider_payment_id=made.id, payment_url=made.confirmation.confirmation_url)

    def fetch(self, payment: Payment) -> ProviderState:
        return _state(_call(_Payment.find_one, payment.provider_payment_id))

    def refund(self, payment: Payment, refund: PaymentRefund) -> str:
        made = _call(
            _Refund.create,
            {"payment_id": payment.provider_payment_id, "amount": _amount(refund.amount, payment.currency)},
            str(refund.pk),
        )
        if made.status == "canceled":
            raise ProviderRefused
        refund_id: str = made.id
        return refund_id

    def authenticate(self, *, body: bytes, headers: Mapping[str, str], address: str) -> Notification:
        if not _is_yookassa(address):
            raise InvalidNotification
        try:
            payload = json.loads(body)
            notice = WebhookNotificationFactory().create(payload)
            subject = str(notice.object.id)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise MalformedNotification from None
        return Notification(event_id=f"{notice.event}:{subject}"[:255], kind=str(notice.event), payload=payload)

    def interpret(self, payload: dict[str, Any]) -> Finding | None:
        try:
            event, subject = payload["event"], payload["object"]
            named = subject["payment_id"] if event.startswith("refund.") else subject["id"]
        except (KeyError, TypeError, AttributeError):
            raise MalformedNotification from None
        if not isinstance(named, str) or not event.startswith(("payment.", "refund.")):
            return None
        payment = (
            Payment.objects.select_related("currency", "user")
            .filter(provider=self.name, provider_payment_id=named)
            .first()
        )
        if payment is None:
            return None
        state = self.fetch(payment)
        return Finding(payment=payment, state=state, conclusive=_confirms(state, event))


def _confirms(state: ProviderState, event: str) -> bool:
    match event:
        case "payment.succeeded":
            return state.told is Told.SUCCEEDED
        case "payment.canceled":
            return state.told is Told.CANCELED
        case "refund.succeeded":
            return state.refunded > 0
    return True


def _state(response: PaymentResponse) -> ProviderState:
    try:
        refunded = response.refunded_amount
        return ProviderState(
            told=_TOLD[response.status],
            amount=Decimal(str(response.amount.value)),
            currency=response.amount.currency,
            refunded=Decimal(str(refunded.value)) if refunded else Decimal(0),
            provider_payment_id=response.id,
        )
    except (KeyError, AttributeError, ArithmeticError) as exc:
        raise ProviderUnavailable from exc


def _amount(amount: Decimal, currency: Currency) -> dict[str, str]:
    return {"value": in_digits(amount, currency), "currency": currency.code}


def _is_yookassa(address: str) -> bool:
    try:
        sender = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(sender in network for network in settings.YOOKASSA_NETWORKS if network.version == sender.version)


def _call(operation: Any, *args: Any) -> Any:
    try:
        return operation(*args)
    except (BadRequestError, ForbiddenError, NotFoundError, GoneError) as exc:
        raise ProviderRefused from exc
    except (ApiError, requests.RequestException, ValueError, TypeError, AttributeError) as exc:
        raise ProviderUnavailable from exc

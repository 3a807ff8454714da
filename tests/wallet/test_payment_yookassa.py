"""YooKassa, with a server in its place. Its notifications are hints: only what it answers counts."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from tests.factories import StaffFactory
from tests.money import api, user_with
from tests.wallet.providers import YooKassaServer, serving, yookassa_notification
from wallet.exceptions import InvalidNotification, ProviderRefused, ProviderUnavailable
from wallet.models import Payment, PaymentEvent, Transfer
from wallet.payments import services
from wallet.selectors import balance_of

pytestmark = pytest.mark.django_db
RETURN_URL = "http://localhost:61000/paid"
SENDER = "185.71.76.5"


@pytest.fixture
def server(settings: Any) -> Iterator[YooKassaServer]:
    with serving(YooKassaServer, settings) as running:
        yield running


def start(user: Any, amount_znc: str = "100.00") -> Payment:
    return services.start_payment(user=user, amount_znc=Decimal(amount_znc), return_url=RETURN_URL)


def send(event: str, subject: dict[str, Any], *, sender: str = SENDER, path: str = "/yookassa", **headers: str) -> Any:
    return Client(REMOTE_ADDR=sender).post(
        f"/api/v1/webhooks/payment{path}", yookassa_notification(event, subject), "application/json", headers=headers
    )


def standing(user: Any) -> tuple[str, str]:
    balance = balance_of(user)
    return str(balance.balance), str(balance.owed)


def test_a_payment_is_opened_in_roubles_and_captured_at_once(server):
    payment = start(user_with())
    [(method, path, headers, body)] = server.requests
    assert (method, path, headers["idempotence-key"]) == ("POST", "/v3/payments", str(payment.pk))
    assert (body["amount"], body["capture"]) == ({"value": "1000.00", "currency": "RUB"}, True)
    assert body["confirmation"] == {"type": "redirect", "return_url": RETURN_URL}
    assert payment.payment_url.startswith("https://yoomoney.ru/")


def test_a_payment_still_being_opened_is_asked_for_again_under_the_same_key(server):
    server.busy = 1
    assert start(user_with()).payment_url
    assert len(server.requests) == 2
    assert len({request[2]["idempotence-key"] for request in server.requests}) == 1
    server.busy = 5
    with pytest.raises(ProviderUnavailable):
        start(user_with())


def test_another_currency_is_not_taken(server):
    answer = api(user_with()).post(
        "/api/v1/currency/purchase",
        {"amount_znc": "1.00", "currency": "EUR", "return_url": RETURN_URL},
        format="json",
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "payment_provider_not_available")
    assert not server.requests
    assert not Payment.objects.exists()


@pytest.mark.parametrize("path", ["", "/yookassa"])
def test_a_notification_is_believed_when_the_payment_says_so(server, path):
    user = user_with()
    payment = start(user)
    told = dict(server.payments[payment.provider_payment_id], status="succeeded", paid=True)
    # Forged: the payment is still pending.
    assert send("payment.succeeded", told, path=path).status_code == 200
    assert standing(user) == ("0.00", "0.00")
    assert PaymentEvent.objects.get().outcome == "not confirmed"
    server.pay(payment.provider_payment_id)
    for _ in range(3):
        assert send("payment.succeeded", told, path=path).status_code == 200
    assert standing(user) == ("100.00", "0.00")
    assert Transfer.objects.get().debit_account.system == "gateway:yookassa"
    payment.refresh_from_db()
    assert payment.receipt_number == f"{timezone.now().year}-000001"


@pytest.mark.parametrize(
    ("sender", "headers"),
    [("203.0.113.9", {}), ("203.0.113.9", {"X-Forwarded-For": SENDER}), ("127.0.0.1", {"X-Real-IP": SENDER})],
)
def test_only_yookassas_addresses_are_heard(server, sender, headers):
    user = user_with()
    payment = start(user)
    paid = server.pay(payment.provider_payment_id)
    asked = len(server.requests)
    answer = send("payment.succeeded", paid, sender=sender, **headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "invalid_signature")
    assert len(server.requests) == asked
    assert not PaymentEvent.objects.exists()
    assert standing(user) == ("0.00", "0.00")


def test_another_amount_is_not_credited(server):
    user = user_with()
    payment = start(user)
    paid = server.pay(payment.provider_payment_id)
    paid["amount"] = {"value": "1.00", "currency": "RUB"}
    assert send("payment.succeeded", paid).status_code == 503
    assert standing(user) == ("0.00", "0.00")


def test_cancellation_and_unknown_payments(server):
    user = user_with()
    payment = start(user)
    assert send("payment.canceled", server.cancel(payment.provider_payment_id)).status_code == 200
    payment.refresh_from_db()
    assert payment.status == "canceled"
    asked = len(server.requests)
    assert send("payment.succeeded", {"id": "22e12f66-000f-5000-8000-18db351245c7"}).status_code == 200
    assert len(server.requests) == asked
    assert not Transfer.objects.exists()


def test_refunds_are_read_from_the_payment(server):
    user = user_with()
    payment = start(user)
    send("payment.succeeded", server.pay(payment.provider_payment_id))
    for number, value in enumerate(("250.00", "750.00")):
        server.refund(payment.provider_payment_id, value)
        refund = {
            "id": f"rf-{number}",
            "payment_id": payment.provider_payment_id,
            "status": "succeeded",
            "amount": {"value": value, "currency": "RUB"},
        }
        for _ in range(2):
            assert send("refund.succeeded", refund).status_code == 200
        assert standing(user) == (("75.00", "0.00"), ("0.00", "0.00"))[number]
    payment.refresh_from_db()
    assert payment.status == "refunded"


def test_a_notification_while_the_provider_is_down_is_carried_out_later(server):
    user = user_with()
    payment = start(user)
    paid = server.pay(payment.provider_payment_id)
    server.failing = True
    answer = send("payment.succeeded", paid)
    assert (answer.status_code, answer.json()["code"]) == (503, "payment_provider_unavailable")
    assert PaymentEvent.objects.get().attempts == 1
    server.failing = False
    PaymentEvent.objects.update(retry_at=timezone.now())
    assert services.retry_due_events() == 1
    assert standing(user) == ("100.00", "0.00")


def test_polling_settles_what_nobody_told(server):
    user = user_with()
    payment = start(user)
    server.pay(payment.provider_payment_id)
    Payment.objects.update(poll_at=timezone.now())
    assert services.poll_due_payments() == 1
    assert services.poll_due_payments() == 0
    assert standing(user) == ("100.00", "0.00")


def test_staff_refund_at_yookassa(server):
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    send("payment.succeeded", server.pay(payment.provider_payment_id))
    services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff, amount=Decimal("100.00"))
    refund = payment.refunds.get()
    assert refund.status == "done"
    asked = [request for request in server.requests if request[1] == "/v3/refunds"]
    assert [(one[2]["idempotence-key"], one[3]["amount"]["value"]) for one in asked] == [(str(refund.pk), "100.00")]
    assert standing(user) == ("90.00", "0.00")


def test_a_refund_that_is_canceled_takes_nothing(server):
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    send("payment.succeeded", server.pay(payment.provider_payment_id))
    server.refund_status = "canceled"
    with pytest.raises(ProviderRefused):
        services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff)
    assert payment.refunds.get().status == "refused"
    assert standing(user) == ("100.00", "0.00")


def test_what_is_not_about_a_payment_is_left(server):
    assert send("payout.succeeded", {"id": "po-1"}).status_code == 200
    assert PaymentEvent.objects.get().outcome == "not ours"
    payment = start(user_with())
    waiting = dict(server.payments[payment.provider_payment_id], status="waiting_for_capture")
    assert send("payment.waiting_for_capture", waiting).status_code == 200
    payment.refresh_from_db()
    assert payment.status == "pending"


def test_an_answer_that_is_none_is_not_believed(server):
    payment = start(user_with())
    server.payments[payment.provider_payment_id]["status"] = "sold"
    with pytest.raises(ProviderUnavailable):
        services.ask_provider(payment_id=payment.pk)


def test_refusals_and_silence_have_names(server, settings):
    user = user_with()
    settings.YOOKASSA_SECRET_KEY = "wrong"
    with pytest.raises(ProviderUnavailable):
        start(user)
    settings.YOOKASSA_SECRET_KEY = "test_shop_secret"
    payment = start(user)
    del server.payments[payment.provider_payment_id]
    with pytest.raises(ProviderRefused):
        services.ask_provider(payment_id=payment.pk)
    settings.PAYMENT_PROVIDER_TIMEOUT = 0.2
    server.silent = 1.0
    with pytest.raises(ProviderUnavailable):
        services.ask_provider(payment_id=payment.pk)
    settings.YOOKASSA_API_URL = "http://127.0.0.1:9/v3"
    with pytest.raises(ProviderUnavailable):
        services.ask_provider(payment_id=payment.pk)
    assert standing(user) == ("0.00", "0.00")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"type": "notification"}', b'{"type": "notification", "event": "x"}']
)
def test_a_malformed_notification_is_refused(server, body):
    answer = Client(REMOTE_ADDR=SENDER).post("/api/v1/webhooks/payment/yookassa", body, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_notification")
    assert not PaymentEvent.objects.exists()


def test_a_payment_without_a_page_is_none(server, monkeypatch):
    made = server.route

    def without_page(*request: Any) -> Any:
        status, answer = made(*request)
        return status, {name: value for name, value in answer.items() if name != "confirmation"}

    monkeypatch.setattr(server, "route", without_page)
    with pytest.raises(ProviderUnavailable):
        start(user_with())
    assert Payment.objects.get().status == "canceled"


def test_a_refund_that_names_no_payment_is_malformed(server):
    answer = send("refund.succeeded", {"id": "rf-1", "status": "succeeded"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_notification")
    assert PaymentEvent.objects.get().processed_at is None


def test_who_has_no_address_is_not_heard(server):
    body = yookassa_notification("payment.succeeded", {"id": "x"})
    with pytest.raises(InvalidNotification):
        services.receive_notification(provider="yookassa", body=body, headers={}, address="unix:")
    assert not PaymentEvent.objects.exists()

"""Topping up through the mock provider: agreeing, paying, canceling, taking back."""

from __future__ import annotations

import json
import re
import threading
import uuid
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.utils import timezone

from tests.factories import StaffFactory
from tests.money import api, user_with
from tests.threads import run_at_once
from tokens.services import purchase_token
from wallet import tasks
from wallet.exceptions import AlreadyPosted, AmountNotPayable, DebtOutstanding, PaymentNotFound, ProviderUnavailable
from wallet.models import (
    Currency,
    ExchangeRate,
    Payment,
    PaymentDispute,
    PaymentEvent,
    PaymentRefund,
    ReceiptSeries,
    Transfer,
)
from wallet.payments import reconciliation as payments_reconciliation
from wallet.payments import services
from wallet.payments.providers import mock
from wallet.payments.providers.base import DisputeState, ProviderState, Told, to_minor_units
from wallet.selectors import balance_of
from wallet.services import SystemAccount, TransferKind, debit, open_account
from zenzefi.lib.idempotency import RequestInFlight

pytestmark = pytest.mark.django_db
PURCHASE = "/api/v1/currency/purchase"
RETURN_URL = "http://localhost:61000/paid"


def start(user: Any, amount_znc: str = "100.00", **extra: Any) -> Payment:
    return services.start_payment(user=user, amount_znc=Decimal(amount_znc), return_url=RETURN_URL, **extra)


def pay(payment: Payment) -> Payment:
    return services.settle_mock_payment(payment_id=payment.pk, succeed=True)


def apply(payment: Payment, told: Told = Told.UNSAID, **facts: Any) -> Payment:
    if told is Told.SUCCEEDED:
        facts = {"amount": payment.amount, "currency": payment.currency_id, **facts}
    return services.apply_provider_state(payment_id=payment.pk, state=ProviderState(told=told, **facts))


def dispute(outcome: str, amount: str = "10000.00", name: str = "dp_1") -> tuple[DisputeState, ...]:
    return (DisputeState(id=name, outcome=outcome, amount=Decimal(amount)),)


def spend(user: Any, amount: str) -> None:
    debit(
        account=open_account(user),
        counterparty=SystemAccount.REVENUE,
        amount=Decimal(amount),
        kind=TransferKind.PURCHASE,
        source=f"test:{uuid.uuid4()}",
    )


def standing(user: Any) -> tuple[str, str]:
    balance = balance_of(user)
    return str(balance.balance), str(balance.owed)


def post(user: Any, body: dict[str, Any], **headers: str) -> Any:
    return api(user).post(PURCHASE, {"return_url": RETURN_URL, **body}, format="json", headers=headers)


def submit(browser: Client, path: str, fields: dict[str, str]) -> Any:
    return browser.post(path, urlencode(fields), "application/x-www-form-urlencoded")


def test_a_purchase_answers_where_to_pay():
    user = user_with()
    answer = post(user, {"amount_znc": "100.00"})
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert body["payment_url"].endswith(f"/api/v1/webhooks/mock-payment?payment_id={body['payment_id']}")
    assert {name: body[name] for name in ("amount_znc", "amount", "currency", "amount_rub", "rate", "status")} == {
        "amount_znc": "100.00",
        "amount": "1000.00",
        "currency": "RUB",
        "amount_rub": "1000.00",
        "rate": "10.00",
        "status": "pending",
    }
    assert body["receipt_number"] is None
    assert not Transfer.objects.exists()
    assert standing(user) == ("0.00", "0.00")


def test_paying_on_the_page_credits_once_and_sends_back():
    user = user_with()
    address = post(user, {"amount_znc": "100.00"}).json()["payment_url"]
    path = address[address.index("/api/") :]
    browser = Client()
    for _ in range(3):
        page = browser.get(path, headers={"Accept": "text/html,application/xhtml+xml"})
        assert (page.status_code, page["Cache-Control"]) == (200, "no-store")
        assert b"1000.00 RUB" in page.content
    assert standing(user) == ("0.00", "0.00")
    [token] = re.findall(rb'name="token" value="([^"]+)"', page.content)
    answer = submit(browser, path, {"token": token.decode(), "action": "pay"})
    assert (answer.status_code, answer["Location"]) == (303, RETURN_URL)
    assert standing(user) == ("100.00", "0.00")
    again = submit(browser, path, {"token": token.decode(), "action": "pay"})
    assert again.status_code == 409
    cancel = submit(browser, path, {"token": token.decode(), "action": "cancel"})
    assert cancel.status_code == 409
    assert standing(user) == ("100.00", "0.00")
    [posted] = Transfer.objects.all()
    payment = Payment.objects.get()
    assert (posted.kind, posted.source) == ("DEPOSIT", f"payment:{payment.pk}")
    assert api(user).get("/api/v1/currency/transactions").json()["items"][0]["payment_id"] == str(payment.pk)
    shown = api(user).get(f"/api/v1/currency/payments/{payment.pk}").json()
    assert (shown["status"], shown["receipt_number"]) == ("succeeded", f"{timezone.now().year}-000001")


@pytest.mark.parametrize("data", [{}, {"action": "pay"}, {"action": "pay", "token": "x"}, {"action": "steal"}])
def test_the_page_refuses_a_form_that_is_not_its_own(data):
    user = user_with()
    payment, other = start(user), start(user)
    browser = Client(enforce_csrf_checks=True)
    page = browser.get(f"/api/v1/webhooks/mock-payment?payment_id={other.pk}")
    [token] = re.findall(rb'name="token" value="([^"]+)"', page.content)
    if data.get("action") == "steal":
        data = {"action": "pay", "token": token.decode()}
    answer = submit(browser, f"/api/v1/webhooks/mock-payment?payment_id={payment.pk}", data)
    assert answer.status_code == 403
    assert not Transfer.objects.exists()


def test_a_canceled_payment_is_never_credited_by_the_mock():
    user = user_with()
    payment = start(user)
    services.settle_mock_payment(payment_id=payment.pk, succeed=False)
    staff = api(StaffFactory())
    answer = staff.post(f"/api/v1/currency/admin/simulate-payment/{payment.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "payment_not_pending")
    assert Payment.objects.get().status == "canceled"
    assert not Transfer.objects.exists()


def test_simulating_is_for_staff():
    user = user_with()
    payment = start(user)
    path = f"/api/v1/currency/admin/simulate-payment/{payment.pk}"
    assert api().post(path).status_code == 401
    assert api(user).post(path).status_code == 403
    assert standing(user) == ("0.00", "0.00")
    answer = api(StaffFactory()).post(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert standing(user) == ("100.00", "0.00")


def test_without_the_mock_provider_its_routes_are_not_there(settings):
    user = user_with()
    payment = start(user)
    settings.PAYMENT_PROVIDERS = []
    assert Client().get(f"/api/v1/webhooks/mock-payment?payment_id={payment.pk}").status_code == 404
    assert api(StaffFactory()).post(f"/api/v1/currency/admin/simulate-payment/{payment.pk}").status_code == 404
    assert Client().post("/api/v1/webhooks/payment/mock", b"{}", "application/json").status_code == 404
    refused = post(user, {"amount_znc": "1.00"})
    assert (refused.status_code, refused.json()["code"]) == (400, "payment_provider_not_available")
    assert Payment.objects.count() == 1


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "ftp://localhost/",
        "https://evil.example/",
        "https://localhost@evil.example/",
        "https://localhost\\@evil.example/",
        "https://localhost.evil.example/",
        "//localhost/",
        "http://localhost:99999/",
        "http://127.0.0.1/\nSet-Cookie: a=b",
        "/relative",
        "http://user@localhost/",
        "https://localhost/" + "a" * 2048,
    ],
)
def test_a_foreign_return_address_is_refused(url):
    answer = post(user_with(), {"amount_znc": "1.00", "return_url": url})
    assert answer.status_code == 400
    assert not Payment.objects.exists()


@pytest.mark.parametrize("url", ["http://localhost:61000/x?y=1", "https://127.0.0.1/", "http://[::1]:5000/a"])
def test_the_desktop_client_may_be_returned_to(url):
    assert post(user_with(), {"amount_znc": "1.00", "return_url": url}).status_code == 201


def test_our_own_pages_may_be_returned_to(settings):
    settings.FRONTEND_URL = "https://app.example"
    user = user_with()
    assert post(user, {"amount_znc": "1.00", "return_url": "https://app.example/wallet"}).status_code == 201
    assert post(user, {"amount_znc": "1.00", "return_url": "http://app.example/wallet"}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"amount_znc": "1.00", "amount": "10.00"},
        {"amount_znc": "0"},
        {"amount_znc": "-1"},
        {"amount_znc": "0.001"},
        {"amount_znc": "100000000.00"},
        {"amount": "0.001"},
        {"amount": "NaN"},
        {"amount": "0.05"},
        {"amount_znc": "1.00", "currency": "XXX"},
        {"amount_znc": "1.00", "currency": "rub "},
        {"amount_znc": "1.00", "provider": "paypal"},
        {"amount_znc": "1.00", "return_url": None},
    ],
)
def test_what_cannot_be_sold_is_refused(body):
    answer = post(user_with(), body)
    assert answer.status_code == 400, answer.content
    assert not Payment.objects.exists()


def test_a_top_up_that_could_not_be_credited_is_refused():
    user = user_with("50000000.00")
    start(user, "40000000.00")
    answer = post(user, {"amount_znc": "10000000.00"})
    assert (answer.status_code, answer.json()["code"]) == (400, "balance_limit_exceeded")
    assert Payment.objects.count() == 1


def test_an_idempotency_key_opens_one_payment():
    user, other = user_with(), user_with()
    first = post(user, {"amount_znc": "10.00"}, **{"Idempotency-Key": "k"})
    again = post(user, {"amount_znc": "10.00"}, **{"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (201, first.json())
    assert post(user, {"amount_znc": "11.00"}, **{"Idempotency-Key": "k"}).status_code == 422
    assert post(user, {"amount_znc": "10.00"}, **{"Idempotency-Key": ""}).status_code == 400
    assert Payment.objects.count() == 1
    assert post(other, {"amount_znc": "10.00"}, **{"Idempotency-Key": "k"}).json() != first.json()


def test_a_key_whose_first_request_still_runs_or_has_died(monkeypatch):
    user = user_with()
    payment = start(user, "10.00", idempotency_key="k")
    Payment.objects.update(payment_url="", provider_payment_id=None)
    with pytest.raises(RequestInFlight):
        start(user, "10.00", idempotency_key="k")
    Payment.objects.update(payment_url="")
    monkeypatch.setattr(services, "CREATION_GRACE", timedelta(0))
    assert start(user, "10.00", idempotency_key="k").pk == payment.pk
    assert Payment.objects.get().payment_url


def test_the_rate_is_frozen_on_the_payment():
    user = user_with()
    body = post(user, {"amount": "25.00", "currency": "EUR"}).json()
    assert (body["amount_znc"], body["amount"], body["znc_per_unit"], body["amount_rub"]) == (
        "270.93",
        "25.00",
        "10.8375",
        None,
    )
    ExchangeRate.objects.create(currency_id="EUR", znc_amount=Decimal("1.00"), currency_amount=Decimal("3.00"))
    payment = Payment.objects.get()
    pay(payment)
    assert standing(user) == ("270.93", "0.00")
    assert api(user).get(f"/api/v1/currency/payments/{payment.pk}").json()["znc_per_unit"] == "10.8375"
    assert post(user, {"amount": "25.00", "currency": "EUR"}).json()["amount_znc"] == "8.33"


def test_zero_decimal_currencies_are_charged_whole():
    yen = Currency.objects.create(code="JPY", name="Yen", minor_unit_digits=0)
    ExchangeRate.objects.create(currency=yen, znc_amount=1, currency_amount=Decimal("16.5"))
    user = user_with()
    assert post(user, {"amount_znc": "10.00", "currency": "JPY"}).json()["amount"] == "165"
    # 0.03 ZNC cost 0.495: never sold below the rate.
    assert post(user, {"amount_znc": "0.03", "currency": "JPY"}).json()["amount"] == "1"
    assert post(user, {"amount": "100", "currency": "JPY"}).json()["amount_znc"] == "6.06"
    assert post(user, {"amount": "100.50", "currency": "JPY"}).json()["code"] == "amount_not_payable"


def test_rates_have_a_date():
    ExchangeRate.objects.create(
        currency_id="USD", znc_amount=1, currency_amount=1, effective_from=timezone.now() + timedelta(days=1)
    )
    Currency.objects.create(code="KWD", name="Dinar", minor_unit_digits=3)
    rates = {item["currency"]: item for item in api().get("/api/v1/currency/rates").json()["items"]}
    assert set(rates) == {"RUB", "USD", "EUR"}
    assert (rates["RUB"]["znc_price"], rates["RUB"]["znc_per_unit"]) == ("10.00", "0.10")
    assert (rates["EUR"]["znc_per_unit"], rates["USD"]["znc_per_unit"]) == ("10.8375", "9.30")
    Currency.objects.filter(code="USD").update(is_active=False)
    assert post(user_with(), {"amount_znc": "1.00", "currency": "USD"}).json()["code"] == "currency_not_available"


def test_a_rate_is_never_edited():
    rate = ExchangeRate.objects.get(currency="RUB")
    for change in (lambda: ExchangeRate.objects.update(znc_amount=2), rate.delete):
        with pytest.raises(DatabaseError), transaction.atomic():
            change()


def test_payments_are_the_owners_own():
    user, other = user_with(), user_with()
    payment = start(user)
    assert api(other).get("/api/v1/currency/payments").json()["items"] == []
    assert api(other).get(f"/api/v1/currency/payments/{payment.pk}").status_code == 404
    assert [item["payment_id"] for item in api(user).get("/api/v1/currency/payments").json()["items"]] == [
        str(payment.pk)
    ]


# What is taken back


def test_a_disputed_top_up_that_was_spent_is_owed_and_given_back_when_won():
    user = user_with()
    payment = pay(start(user, "1000.00"))
    spend(user, "950.00")
    apply(payment, disputes=dispute("open"))
    assert standing(user) == ("0.00", "950.00")
    assert Payment.objects.get().status == "disputed"
    answer = api(user).post("/api/v1/tokens/purchase", {"duration_hours": 1}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (402, "debt_outstanding")
    assert standing(user) == ("0.00", "950.00")
    apply(payment, disputes=dispute("open"))
    assert standing(user) == ("0.00", "950.00")
    apply(payment, disputes=dispute("won"))
    assert standing(user) == ("50.00", "0.00")
    assert Payment.objects.get().status == "succeeded"
    apply(payment, disputes=dispute("open"))
    assert standing(user) == ("50.00", "0.00")
    assert [row.kind for row in Transfer.objects.order_by("id")] == [
        "DEPOSIT",
        "PURCHASE",
        "CHARGEBACK",
        "CHARGEBACK_REVERSAL",
    ]


def test_a_debt_is_paid_by_the_next_top_up_and_then_spending_goes_on():
    user = user_with()
    payment = pay(start(user, "10.00"))
    spend(user, "10.00")
    apply(payment, refunded=payment.amount)
    assert standing(user) == ("0.00", "10.00")
    with pytest.raises(DebtOutstanding):
        purchase_token(owner=user, duration_hours=1)
    pay(start(user, "12.00"))
    assert standing(user) == ("2.00", "0.00")
    purchase_token(owner=user, duration_hours=1)
    assert standing(user) == ("1.00", "0.00")


def test_partial_refunds_are_cumulative():
    user = user_with()
    payment = pay(start(user, "100.00"))
    for cumulative, left in [("333.33", "66.67"), ("333.33", "66.67"), ("100.00", "66.67"), ("666.66", "33.34")]:
        assert apply(payment, refunded=Decimal(cumulative)).status == "succeeded"
        assert standing(user) == (left, "0.00")
    assert apply(payment, refunded=Decimal("1000.00")).status == "refunded"
    assert standing(user) == ("0.00", "0.00")


def test_refund_and_dispute_together_take_no_more_than_was_paid():
    user = user_with("5.00")
    payment = pay(start(user, "100.00"))
    apply(payment, refunded=Decimal("400.00"), disputes=dispute("lost", "1000.00"))
    assert standing(user) == ("5.00", "0.00")
    assert Payment.objects.get().status == "disputed"
    apply(payment, refunded=Decimal("1000.00"))
    assert Payment.objects.get().status == "refunded"
    assert standing(user) == ("5.00", "0.00")


FACTS: dict[str, list[dict[str, Any]]] = {
    "refunded before the success": [{"refunded": Decimal("1000.00")}, {"told": Told.SUCCEEDED}],
    "won before it was opened": [
        {"disputes": dispute("won")},
        {"told": Told.SUCCEEDED},
        {"disputes": dispute("open")},
    ],
    "lost and then given back after all": [
        {"disputes": dispute("lost")},
        {"told": Told.SUCCEEDED},
        {"disputes": dispute("won")},
    ],
    "canceled and yet paid": [{"told": Told.CANCELED}, {"told": Told.SUCCEEDED}, {"told": Told.CANCELED}],
    "paid, then told to be pending": [{"told": Told.SUCCEEDED}, {"told": Told.PENDING}, {"told": Told.CANCELED}],
}
ENDS = {
    "refunded before the success": ("refunded", "0.00"),
    "won before it was opened": ("succeeded", "100.00"),
    "lost and then given back after all": ("succeeded", "100.00"),
    "canceled and yet paid": ("succeeded", "100.00"),
    "paid, then told to be pending": ("succeeded", "100.00"),
}


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_of_the_news_does_not_matter(name, backwards):
    user = user_with()
    payment = start(user, "100.00")
    news = FACTS[name][::-1] if backwards else FACTS[name]
    for fact in news + news:
        apply(payment, **fact)
    assert (Payment.objects.get().status, standing(user)[0]) == ENDS[name]
    assert Transfer.objects.filter(kind="DEPOSIT").count() == 1


@pytest.mark.parametrize(("amount", "currency"), [("999.99", "RUB"), ("1000.00", "USD"), ("10.00", "RUB")])
def test_another_amount_than_agreed_is_not_credited(amount, currency):
    user = user_with()
    payment = start(user, "100.00")
    with pytest.raises(services.PaymentMismatch):
        apply(payment, Told.SUCCEEDED, amount=Decimal(amount), currency=currency)
    assert Payment.objects.get().status == "pending"
    assert not Transfer.objects.exists()
    assert not ReceiptSeries.objects.exists()


def test_the_database_refuses_a_step_back_and_a_changed_agreement():
    payment = pay(start(user_with()))
    for change in ({"status": "pending"}, {"status": "canceled"}, {"amount_znc": 1}, {"amount": 1}, {"provider": "x"}):
        with pytest.raises(DatabaseError), transaction.atomic():
            Payment.objects.filter(pk=payment.pk).update(**change)


def test_an_outbox_event_tells_each_change():
    from django.apps import apps

    user = user_with()
    payment = pay(start(user, "10.00"))
    apply(payment, disputes=dispute("open"))
    apply(payment, disputes=dispute("won"))
    apply(payment, refunded=payment.amount)
    events = apps.get_model("notifications.OutboxEvent").objects.order_by("created_at")
    assert [event.event for event in events] == [
        "payment.succeeded",
        "payment.disputed",
        "payment.dispute_won",
        "payment.refunded",
    ]
    assert events[0].data["receipt_number"] == Payment.objects.get().receipt_number


# The mock provider's notifications


def mock_event(payment: Payment, kind: str = mock.SUCCEEDED, event_id: str = "e1", **facts: Any) -> bytes:
    return json.dumps(mock.notification(payment, kind, event_id=event_id, **facts).payload).encode()


def notify(body: bytes, path: str = "/mock", **headers: str) -> Any:
    return Client().post(f"/api/v1/webhooks/payment{path}", body, "application/json", headers=headers)


@pytest.mark.parametrize("path", ["", "/mock"])
def test_an_unsigned_notification_is_refused(path):
    user = user_with()
    payment = start(user)
    body = mock_event(payment)
    for headers in ({}, {"X-Mock-Signature": "00"}, {"X-Mock-Signature": mock.sign(body + b" ")}):
        answer = notify(body, path, **headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "invalid_signature")
    assert standing(user) == ("0.00", "0.00")
    assert not PaymentEvent.objects.exists()


@pytest.mark.parametrize("path", ["", "/mock"])
def test_a_signed_notification_is_credited_once(path):
    user = user_with()
    payment = start(user)
    for number in (1, 1, 2):
        body = mock_event(payment, event_id=f"e{number}")
        answer = notify(body, path, **{"X-Mock-Signature": mock.sign(body)})
        assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert standing(user) == ("100.00", "0.00")
    assert [event.outcome for event in PaymentEvent.objects.all()] == ["succeeded", "succeeded"]


def test_a_notification_that_cannot_be_carried_out_is_kept_and_asked_for_again():
    user = user_with()
    payment = start(user)
    body = mock_event(payment, amount="1.00")
    answer = notify(body, **{"X-Mock-Signature": mock.sign(body)})
    assert (answer.status_code, answer.json()["code"]) == (503, "notification_not_processed")
    event = PaymentEvent.objects.get()
    assert (event.processed_at, event.attempts, event.outcome) == (None, 1, "payment_mismatch")
    assert event.retry_at is not None
    assert standing(user) == ("0.00", "0.00")


def test_a_stored_notification_is_carried_out_without_being_sent_again():
    user = user_with()
    payment = start(user)
    PaymentEvent.objects.create(
        provider="mock",
        event_id="e1",
        kind=mock.SUCCEEDED,
        payload=json.loads(mock_event(payment)),
        retry_at=timezone.now() - timedelta(seconds=1),
    )
    assert services.retry_due_events() == 1
    assert services.retry_due_events() == 0
    assert standing(user) == ("100.00", "0.00")


def test_a_notification_about_nothing_of_ours_is_taken_and_left():
    body = json.dumps({"id": "e", "type": "payment.succeeded", "payment_id": str(uuid.uuid4())}).encode()
    assert notify(body, **{"X-Mock-Signature": mock.sign(body)}).status_code == 200
    assert PaymentEvent.objects.get().outcome == "not ours"
    assert not Transfer.objects.exists()


def test_the_mock_tells_of_refunds_and_disputes_too():
    user = user_with()
    payment = start(user)
    news = [
        (mock.DISPUTED, {"dispute": "dp_1", "outcome": "open", "amount": "300.00"}, "0.00"),
        (mock.SUCCEEDED, {}, "70.00"),
        (mock.DISPUTED, {"dispute": "dp_1", "outcome": "won", "amount": "300.00"}, "100.00"),
        (mock.REFUNDED, {"refunded": "250.00"}, "75.00"),
        ("payment.remembered", {}, "75.00"),
    ]
    for number, (kind, facts, left) in enumerate(news):
        body = mock_event(payment, kind, f"e{number}", **facts)
        assert notify(body, **{"X-Mock-Signature": mock.sign(body)}).status_code == 200
        assert standing(user) == (left, "0.00")
    # Asked again, it knows the same.
    services.ask_provider(payment_id=payment.pk)
    assert standing(user) == ("75.00", "0.00")


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (mock.REFUNDED, {}),
        (mock.REFUNDED, {"refunded": "much"}),
        (mock.DISPUTED, {"dispute": "dp_1", "outcome": "undecided"}),
        (mock.SUCCEEDED, {"amount": None}),
    ],
)
def test_a_notification_with_half_of_its_facts_changes_nothing(kind, facts):
    user = user_with()
    body = mock_event(start(user), kind, **facts)
    answer = notify(body, **{"X-Mock-Signature": mock.sign(body)})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_notification")
    assert PaymentEvent.objects.get().processed_at is None
    assert standing(user) == ("0.00", "0.00")


def test_a_shared_address_takes_no_nonsense():
    for body in (b"\xff", b"{"):
        assert notify(body, "").json()["code"] == "malformed_notification"
    assert notify(b"[]", "").json()["code"] == "invalid_signature"
    assert Client().get("/api/v1/webhooks/mock-payment?payment_id=x").status_code == 404
    assert Client().get(f"/api/v1/webhooks/mock-payment?payment_id={uuid.uuid4()}").status_code == 404
    assert not PaymentEvent.objects.exists()


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b"\xff", b'{"id": 1}'])
def test_a_signed_notification_that_is_no_notification_is_refused(body):
    answer = notify(body, **{"X-Mock-Signature": mock.sign(body)})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_notification")
    assert not PaymentEvent.objects.exists()


def test_a_huge_notification_is_refused(settings):
    body = b" " * (settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
    answer = notify(body, **{"X-Mock-Signature": mock.sign(body)})
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


# Polling


def test_a_pending_payment_is_asked_about_until_it_is_settled():
    user = user_with()
    payment = start(user)
    assert services.poll_due_payments() == 0
    due = timezone.now() - timedelta(seconds=1)
    Payment.objects.update(poll_at=due)
    assert services.poll_due_payments() == 1
    payment.refresh_from_db()
    assert payment.polls == 1
    assert payment.poll_at is not None and payment.poll_at > timezone.now()
    # The event was stored, and then the process died.
    PaymentEvent.objects.create(
        provider="mock", event_id="e1", kind=mock.SUCCEEDED, payload=json.loads(mock_event(payment)), payment=payment
    )
    Payment.objects.update(poll_at=due)
    assert services.poll_due_payments() == 1
    assert standing(user) == ("100.00", "0.00")
    assert Payment.objects.get().poll_at is None


def test_what_cannot_be_settled_holds_up_nothing(settings):
    user = user_with()
    broken, fine = start(user), start(user)
    for payment, facts in ((broken, {"amount": "1.00"}), (fine, {})):
        payload = mock.notification(payment, mock.SUCCEEDED, event_id=str(payment.pk), **facts).payload
        PaymentEvent.objects.create(
            provider="mock",
            event_id=str(payment.pk),
            kind=mock.SUCCEEDED,
            payload=payload,
            payment=payment,
            retry_at=timezone.now() - timedelta(seconds=1),
        )
    assert services.retry_due_events() == 1
    assert standing(user) == ("100.00", "0.00")
    assert not PaymentEvent.objects.filter(payment=broken, retry_at__lte=timezone.now()).exists()
    assert PaymentEvent.objects.get(payment=broken).retry_at is not None
    settings.PAYMENT_PROVIDERS = []
    Payment.objects.filter(pk=broken.pk).update(poll_at=timezone.now())
    assert services.poll_due_payments() == 0
    broken.refresh_from_db()
    assert (broken.status, broken.polls) == ("pending", 1)


def test_what_is_not_there_is_refused():
    nobody = uuid.uuid4()
    state = ProviderState(told=Told.CANCELED)
    for call in (
        lambda: services.ask_provider(payment_id=nobody),
        lambda: services.apply_provider_state(payment_id=nobody, state=state),
        lambda: services.settle_mock_payment(payment_id=nobody, succeed=True),
        lambda: services.refund_payment(payment_id=nobody, reason="x", actor=None),
    ):
        with pytest.raises(PaymentNotFound):
            call()


@pytest.mark.parametrize("amount", ["0", "-1", "0.001"])
def test_an_amount_that_cannot_be_paid_back_is_refused(amount):
    user = user_with()
    payment = pay(start(user))
    with pytest.raises(AmountNotPayable):
        services.refund_payment(payment_id=payment.pk, reason="x", actor=StaffFactory(), amount=Decimal(amount))
    assert standing(user) == ("100.00", "0.00")
    assert not payment.refunds.exists()


def test_a_page_nobody_used_is_canceled(monkeypatch):
    payment = start(user_with())
    monkeypatch.setattr(mock, "PAGE_LIFETIME", timedelta(0))
    Payment.objects.update(poll_at=timezone.now())
    services.poll_due_payments()
    payment.refresh_from_db()
    assert (payment.status, payment.poll_at) == ("canceled", None)
    assert not Transfer.objects.exists()


def test_a_payment_that_never_got_a_page_is_canceled():
    payment = start(user_with())
    Payment.objects.update(provider_payment_id=None, payment_url="", poll_at=timezone.now())
    services.poll_due_payments()
    payment.refresh_from_db()
    assert payment.status == "canceled"


def test_the_schedule_names_tasks_that_run():
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    payload = mock.notification(payment, mock.SUCCEEDED, event_id="e").payload
    PaymentEvent.objects.create(
        provider="mock", event_id="e", kind=mock.SUCCEEDED, payload=payload, retry_at=timezone.now()
    )
    names = {entry["task"] for entry in tasks.SCHEDULE.values()}
    assert {"wallet.tasks.poll_payments", "wallet.tasks.resume_payment_refunds"} < names
    assert tasks.retry_payment_events() == 1
    assert standing(user) == ("100.00", "0.00")
    PaymentRefund.objects.create(payment=payment, amount=payment.amount, reason="x", requested_by=staff)
    PaymentRefund.objects.update(created_at=timezone.now() - timedelta(hours=1))
    assert tasks.resume_payment_refunds() == 1
    assert standing(user) == ("0.00", "0.00")
    other = start(user)
    Payment.objects.filter(pk=other.pk).update(poll_at=timezone.now())
    assert tasks.poll_payments() == 1
    assert tasks.poll_payments() == 0


# Refunds by staff


def test_staff_refund_in_parts_and_never_more_than_was_paid():
    user, staff = user_with(), StaffFactory()
    payment = pay(start(user, "100.00"))
    services.refund_payment(payment_id=payment.pk, reason="half", actor=staff, amount=Decimal("500.00"))
    assert standing(user) == ("50.00", "0.00")
    with pytest.raises(services.PaymentNotRefundable):
        services.refund_payment(payment_id=payment.pk, reason="more", actor=staff, amount=Decimal("500.01"))
    assert standing(user) == ("50.00", "0.00")
    assert services.refund_payment(payment_id=payment.pk, reason="rest", actor=staff).status == "refunded"
    assert standing(user) == ("0.00", "0.00")
    with pytest.raises(services.PaymentNotRefundable):
        services.refund_payment(payment_id=payment.pk, reason="again", actor=staff)
    assert [str(refund.amount) for refund in payment.refunds.order_by("created_at")] == ["500.000", "500.000"]


def test_a_pending_or_disputed_payment_is_not_refunded():
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    with pytest.raises(services.PaymentNotRefundable):
        services.refund_payment(payment_id=payment.pk, reason="x", actor=staff)
    pay(payment)
    apply(payment, disputes=dispute("open", "1000.00"))
    with pytest.raises(services.PaymentNotRefundable):
        services.refund_payment(payment_id=payment.pk, reason="x", actor=staff)
    assert payment.refunds.count() == 0
    assert PaymentDispute.objects.count() == 1


# Races


def confirm(payment: Payment, _: int) -> Payment:
    return apply(payment, Told.SUCCEEDED)


def tell(payment: Payment, number: int) -> None:
    """Deliver one of two messages that both say that the payment was paid."""
    body = mock_event(payment, event_id=f"{payment.pk}:{number % 2}")
    headers = {"X-Mock-Signature": mock.sign(body)}
    services.receive_notification(provider="mock", body=body, headers=headers, address="127.0.0.1")


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_twenty_notifications_at_once_credit_once():
    for _ in range(20):
        user = user_with()
        payment = start(user, "10.00")
        assert run_at_once(20, partial(tell, payment)) == [None] * 20
        assert standing(user) == ("10.00", "0.00")
    assert PaymentEvent.objects.filter(processed_at__isnull=False).count() == 40
    numbers = sorted(map(str, Payment.objects.values_list("receipt_number", flat=True)))
    assert numbers == [f"{timezone.now().year}-{n:06d}" for n in range(1, 21)]


@pytest.mark.django_db(transaction=True)
def test_without_the_lock_confirmations_collide(monkeypatch):
    """The negative control: everyone reads "pending", and only the ledger's own guard keeps the second one out."""
    all_have_read = threading.Barrier(4, timeout=30)

    def read_without_lock(payment_id: Any) -> Payment:
        payment = Payment.objects.select_related("currency", "user").get(pk=payment_id)
        all_have_read.wait()
        return payment

    user = user_with()
    payment = start(user, "10.00")
    monkeypatch.setattr(services, "_lock", read_without_lock)
    outcomes = run_at_once(4, partial(confirm, payment))
    assert sum(isinstance(outcome, AlreadyPosted) for outcome in outcomes) == 3
    assert standing(user) == ("10.00", "0.00")


@pytest.mark.django_db(transaction=True)
def test_receipts_have_no_gaps_when_many_payments_succeed_and_some_fail():
    payments = [start(user_with(), "10.00") for _ in range(20)]

    def report(number: int) -> Payment:
        facts = {"amount": Decimal("1.00")} if number % 4 == 0 else {}
        return apply(payments[number], Told.SUCCEEDED, **facts)

    run_at_once(20, report)
    numbers = sorted(map(str, Payment.objects.exclude(receipt_number=None).values_list("receipt_number", flat=True)))
    assert numbers == [f"{timezone.now().year}-{n:06d}" for n in range(1, 16)]


@pytest.mark.django_db(transaction=True)
def test_one_key_sent_at_once_opens_one_payment():
    user = user_with()

    def call(_: int) -> int:
        return post(user, {"amount_znc": "10.00"}, **{"Idempotency-Key": "k"}).status_code

    statuses = run_at_once(10, call)
    assert set(statuses) <= {201, 409} and 201 in statuses
    assert Payment.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_refund_asked_for_twice_at_once_is_paid_once():
    user, staff = user_with(), StaffFactory()
    payment = pay(start(user, "10.00"))
    run_at_once(8, lambda _: services.refund_payment(payment_id=payment.pk, reason="x", actor=staff))
    assert standing(user) == ("0.00", "0.00")
    assert payment.refunds.filter(status="done").count() == 1


# Reconciliation


def drifts() -> list[str]:
    with connection.cursor() as cursor:
        found = []
        for check in payments_reconciliation._CHECKS:
            cursor.execute(check.query)
            found += [check.name for _ in cursor.fetchall()]
        return found


def test_reconciliation_finds_what_was_tampered_with():
    user = user_with("3.00")
    payment = pay(start(user))
    apply(payment, refunded=Decimal("100.00"), disputes=dispute("open", "200.00"))
    apply(payment, disputes=dispute("won", "200.00"))
    start(user)
    assert drifts() == []
    names = [check.name for check in payments_reconciliation._CHECKS]
    for sql, expected in (
        ("UPDATE wallet_payment SET reversed_znc = 0 WHERE reversed_znc > 0", names[1]),
        ("UPDATE wallet_receiptseries SET last_number = 2", names[2]),
        ("UPDATE wallet_payment SET amount_znc = 101 WHERE status = 'succeeded'", names[0]),
        (
            "UPDATE wallet_payment SET status = 'pending', succeeded_at = NULL, receipt_number = NULL "
            "WHERE status = 'succeeded'",
            names[0],
        ),
    ):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute(sql)
            assert expected in drifts(), sql
            transaction.set_rollback(True)
    assert drifts() == []


# What happens between two steps of ours


def test_either_znc_or_an_amount_is_agreed_on():
    user = user_with()
    choices: list[dict[str, Any]] = [{}, {"amount_znc": Decimal("1.00"), "amount": Decimal("10.00")}]
    for both_or_none in choices:
        with pytest.raises(ValueError, match="either amount_znc or amount"):
            services.start_payment(user=user, return_url=RETURN_URL, **both_or_none)
    assert not Payment.objects.exists()


def test_half_a_minor_unit_cannot_be_asked_for():
    rouble = Currency.objects.get(code="RUB")
    assert to_minor_units(Decimal("10.50"), rouble) == 1050
    with pytest.raises(ValueError, match="no whole number"):
        to_minor_units(Decimal("10.505"), rouble)


@pytest.mark.parametrize("reachable", [True, False])
def test_a_customer_who_pays_before_we_know_the_page_is_credited_once(monkeypatch, reachable):
    """The provider's message overtakes its answer, which then comes or never does."""
    user = user_with()
    create = mock.MockProvider.create

    def paid_meanwhile(provider: mock.MockProvider, payment: Payment) -> Any:
        apply(payment, Told.SUCCEEDED)
        if not reachable:
            raise ProviderUnavailable
        return create(provider, payment)

    monkeypatch.setattr(mock.MockProvider, "create", paid_meanwhile)
    if reachable:
        assert start(user).status == "succeeded"
    else:
        with pytest.raises(ProviderUnavailable):
            start(user)
    payment = Payment.objects.get()
    assert (payment.status, payment.poll_at) == ("succeeded", None)
    assert standing(user) == ("100.00", "0.00")


def overtaken(monkeypatch: pytest.MonkeyPatch, step: str, job: Any) -> None:
    """Let another worker run the job while the first one is at its first row."""
    original = getattr(services, step)
    at_first: list[bool] = []

    def with_another_worker(**arguments: Any) -> Any:
        if not at_first:
            at_first.append(True)
            assert job() == 1
        return original(**arguments)

    monkeypatch.setattr(services, step, with_another_worker)


def test_an_event_that_another_worker_took_is_left_to_it(monkeypatch):
    user = user_with()
    for number in (1, 2):
        PaymentEvent.objects.create(
            provider="mock",
            event_id=f"e{number}",
            kind=mock.SUCCEEDED,
            payload=json.loads(mock_event(start(user), event_id=f"e{number}")),
            retry_at=timezone.now() - timedelta(seconds=3 - number),
        )
    overtaken(monkeypatch, "process_event", services.retry_due_events)
    assert services.retry_due_events() == 1
    assert standing(user) == ("200.00", "0.00")
    assert set(PaymentEvent.objects.values_list("attempts", "outcome")) == {(0, "succeeded")}
    for event in PaymentEvent.objects.all():
        services.process_event(event_id=event.pk)
    assert standing(user) == ("200.00", "0.00")


def test_a_payment_that_another_worker_polls_is_left_to_it(monkeypatch):
    user = user_with()
    payments = [start(user), start(user)]
    due = timezone.now() - timedelta(seconds=10)
    for number, payment in enumerate(payments):
        Payment.objects.filter(pk=payment.pk).update(poll_at=due + timedelta(seconds=number))
    overtaken(monkeypatch, "ask_provider", services.poll_due_payments)
    assert services.poll_due_payments() == 1
    assert list(Payment.objects.values_list("polls", flat=True)) == [1, 1]


def test_a_refund_that_is_done_is_not_done_again():
    user, staff = user_with(), StaffFactory()
    payment = pay(start(user))
    services.refund_payment(payment_id=payment.pk, reason="x", actor=staff, amount=Decimal("400.00"))
    for _ in range(2):
        services.carry_out_refund(refund_id=payment.refunds.get().pk)
    assert standing(user) == ("60.00", "0.00")


def test_a_refund_waits_while_its_provider_is_switched_off(settings):
    user, staff = user_with(), StaffFactory()
    payment = pay(start(user))
    PaymentRefund.objects.create(payment=payment, amount=payment.amount, reason="x", requested_by=staff)
    PaymentRefund.objects.update(created_at=timezone.now() - timedelta(hours=1))
    settings.PAYMENT_PROVIDERS = []
    assert services.resume_refunds() == 0
    assert payment.refunds.get().status == "requested"
    assert standing(user) == ("100.00", "0.00")


def test_the_mocks_page_settles_no_payment_of_another_provider():
    user = user_with()
    payment = start(user)
    payment.pk, payment.provider, payment.provider_payment_id = uuid.uuid4(), "stripe", "cs_1"
    payment.save(force_insert=True)
    with pytest.raises(PaymentNotFound):
        services.settle_mock_payment(payment_id=payment.pk, succeed=True)
    assert standing(user) == ("0.00", "0.00")


def test_a_signed_notification_about_a_name_that_is_no_id_is_taken_and_left():
    body = json.dumps({"id": "e", "type": "payment.succeeded", "payment_id": "x"}).encode()
    assert notify(body, **{"X-Mock-Signature": mock.sign(body)}).status_code == 200
    assert PaymentEvent.objects.get().outcome == "not ours"

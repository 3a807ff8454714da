"""Stripe, with a server in its place and its SDK's own signatures."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
import stripe
from django.db import connection, connections
from django.test import Client
from django.utils import timezone

from tests.factories import StaffFactory
from tests.money import api, user_with
from tests.wallet.providers import WEBHOOK_SECRET, StripeServer, serving, stripe_event
from wallet.exceptions import ProviderRefused, ProviderUnavailable
from wallet.models import Currency, ExchangeRate, Payment, PaymentEvent, Transfer
from wallet.payments import services
from wallet.payments.providers.stripe import StripeProvider
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of

pytestmark = pytest.mark.django_db
RETURN_URL = "http://localhost:61000/paid"


@pytest.fixture
def server(settings: Any) -> Iterator[StripeServer]:
    with serving(StripeServer, settings) as running:
        yield running


def start(user: Any, amount_znc: str = "100.00", currency: str = "RUB", **extra: Any) -> Payment:
    return services.start_payment(
        user=user, amount_znc=Decimal(amount_znc), currency=currency, return_url=RETURN_URL, **extra
    )


def send(kind: str, subject: dict[str, Any], event_id: str = "evt_1", path: str = "/stripe", status: int = 200) -> Any:
    body, headers = stripe_event(kind, subject, event_id=event_id)
    answer = Client().post(f"/api/v1/webhooks/payment{path}", body, "application/json", headers=headers)
    assert answer.status_code == status, answer.content
    return answer.json()


def standing(user: Any) -> tuple[str, str]:
    balance = balance_of(user)
    return str(balance.balance), str(balance.owed)


def test_a_session_is_opened_in_minor_units_and_once(server):
    user = user_with()
    payment = start(user, idempotency_key="k")
    [(method, path, headers, body)] = server.requests
    assert (method, path) == ("POST", "/v1/checkout/sessions")
    assert headers["idempotency-key"] == f"payment-{payment.pk}"
    assert body["line_items[0][price_data][unit_amount]"] == "100000"
    assert body["line_items[0][price_data][currency]"] == "rub"
    assert body["metadata[payment_id]"] == body["payment_intent_data[metadata][payment_id]"] == str(payment.pk)
    assert (body["success_url"], body["customer_email"]) == (RETURN_URL, user.email)
    assert payment.payment_url.startswith("https://checkout.stripe.com/")
    assert start(user, idempotency_key="k").payment_url == payment.payment_url
    assert len(server.requests) == 1


def test_a_zero_decimal_currency_is_not_charged_a_hundredfold(server):
    yen = Currency.objects.create(code="JPY", name="Yen", minor_unit_digits=0)
    ExchangeRate.objects.create(currency=yen, znc_amount=1, currency_amount=Decimal("16.5"))
    user = user_with()
    payment = start(user, "10.00", "JPY")
    assert server.requests[-1][3]["line_items[0][price_data][unit_amount]"] == "165"
    send("checkout.session.completed", server.pay(payment.provider_payment_id))
    assert standing(user) == ("10.00", "0.00")


@pytest.mark.parametrize("path", ["", "/stripe"])
def test_a_paid_session_is_credited_once(server, path):
    user = user_with()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    send("checkout.session.completed", session, "evt_1", path)
    send("checkout.session.completed", session, "evt_1", path)
    send("checkout.session.async_payment_succeeded", session, "evt_2", path)
    assert standing(user) == ("100.00", "0.00")
    payment.refresh_from_db()
    assert (payment.status, payment.provider_reference) == ("succeeded", session["payment_intent"])
    assert payment.receipt_number == f"{timezone.now().year}-000001"
    assert Transfer.objects.get().debit_account.system == "gateway:stripe"


def test_only_what_stripe_signed_counts(server):
    user = user_with()
    payment = start(user)
    body, headers = stripe_event("checkout.session.completed", server.pay(payment.provider_payment_id), event_id="e")
    old = stripe.WebhookSignature.generate_signature_header(
        body.decode(), WEBHOOK_SECRET, int(timezone.now().timestamp()) - 3600
    )
    other = stripe.WebhookSignature.generate_signature_header(body.decode(), "whsec_other")
    refused = [
        (body, {}),
        (body, {"Stripe-Signature": "t=1,v1=00"}),
        (body, {"Stripe-Signature": other}),
        (body, {"Stripe-Signature": old}),
        # The same JSON in other bytes is not what was signed.
        (json.dumps(json.loads(body), indent=1).encode(), headers),
        (b"\xff", headers),
    ]
    for changed, sent in refused:
        answer = Client().post("/api/v1/webhooks/payment/stripe", changed, "application/json", headers=sent)
        assert answer.status_code in {400, 403}, answer.content
        assert answer.json()["code"] in {"invalid_signature", "malformed_notification"}
    assert not PaymentEvent.objects.exists()
    assert standing(user) == ("0.00", "0.00")


@pytest.mark.parametrize(
    ("kind", "changes", "status"),
    [
        ("checkout.session.completed", {"payment_status": "unpaid", "status": "complete"}, "pending"),
        ("checkout.session.expired", {"status": "expired"}, "canceled"),
        ("checkout.session.async_payment_failed", {"status": "complete"}, "canceled"),
    ],
)
def test_a_session_that_is_not_paid_is_not_credited(server, kind, changes, status):
    user = user_with()
    payment = start(user)
    session = server.sessions[payment.provider_payment_id]
    session.update(changes)
    send(kind, session)
    payment.refresh_from_db()
    assert payment.status == status
    assert standing(user) == ("0.00", "0.00")


@pytest.mark.parametrize("changes", [{"amount_total": 100}, {"currency": "usd"}])
def test_another_amount_is_not_credited(server, changes):
    user = user_with()
    payment = start(user)
    session = server.pay(payment.provider_payment_id) | changes
    assert send("checkout.session.completed", session, status=503)["code"] == "notification_not_processed"
    assert standing(user) == ("0.00", "0.00")


def test_refunds_are_cumulative_and_may_come_first(server):
    user = user_with()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    send("charge.refunded", server.charge(session["id"], refunded=25000), "evt_2")
    assert standing(user) == ("0.00", "0.00")
    send("checkout.session.completed", session, "evt_1")
    assert standing(user) == ("75.00", "0.00")
    send("charge.refunded", server.charge(session["id"], refunded=100000), "evt_4")
    send("charge.refunded", server.charge(session["id"], refunded=50000), "evt_3")
    assert standing(user) == ("0.00", "0.00")
    payment.refresh_from_db()
    assert payment.status == "refunded"


def test_a_dispute_is_matched_through_its_payment_intent(server):
    user = user_with()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    # Before the session's own event, so only Stripe knows whose the PaymentIntent is.
    send("charge.dispute.created", server.dispute(session["id"], status="needs_response", amount=100000), "evt_1")
    assert server.requests[-1][1] == f"/v1/payment_intents/{session['payment_intent']}"
    send("checkout.session.completed", session, "evt_2")
    assert standing(user) == ("0.00", "0.00")
    payment.refresh_from_db()
    assert payment.status == "disputed"
    send("charge.dispute.closed", server.dispute(session["id"], status="won", amount=100000), "evt_3")
    assert standing(user) == ("100.00", "0.00")


def test_an_inquiry_takes_nothing(server):
    user = user_with()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    send("checkout.session.completed", session, "evt_1")
    inquiry = server.dispute(session["id"], status="warning_needs_response", amount=100000)
    send("charge.dispute.created", inquiry, "evt_2")
    assert standing(user) == ("100.00", "0.00")


def test_what_is_not_ours_is_taken_and_left(server):
    send("customer.created", {"id": "cus_1", "object": "customer"}, "evt_1")
    session = {"id": "cs_x", "metadata": {}, "payment_status": "paid", "status": "complete"}
    send("checkout.session.completed", session, "evt_2")
    assert [event.outcome for event in PaymentEvent.objects.all()] == ["not ours", "not ours"]


def test_an_event_about_another_shops_charge_is_left(server):
    server.intents["pi_x"] = {"id": "pi_x", "object": "payment_intent", "metadata": {}}
    charge = {"id": "ch_x", "object": "charge", "payment_intent": "pi_x", "metadata": {}, "amount_refunded": 1}
    send("charge.refunded", charge)
    assert PaymentEvent.objects.get().outcome == "not ours"


def test_a_signed_event_without_its_object_is_malformed(server):
    assert send("charge.refunded", {"payment_intent": 5}, status=400)["code"] == "malformed_notification"
    assert not Transfer.objects.exists()


def test_polling_finds_what_no_event_told(server):
    user = user_with()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    server.charge(session["id"], refunded=10000)
    server.dispute(session["id"], status="under_review", amount=20000)
    Payment.objects.update(poll_at=timezone.now())
    assert services.poll_due_payments() == 1
    assert standing(user) == ("70.00", "0.00")
    server.dispute(session["id"], status="won", amount=20000)
    assert services.ask_provider(payment_id=payment.pk).status == "succeeded"
    assert standing(user) == ("90.00", "0.00")


@pytest.mark.parametrize(
    ("intent", "status"), [("processing", "pending"), ("requires_payment_method", "canceled"), ("canceled", "canceled")]
)
def test_polling_finds_that_a_slow_method_failed(server, intent, status):
    payment = start(user_with())
    session = server.pay(payment.provider_payment_id)
    session["payment_status"] = "unpaid"
    server.intents[session["payment_intent"]]["status"] = intent
    assert services.ask_provider(payment_id=payment.pk).status == status
    assert not Transfer.objects.exists()


def test_a_failing_provider_cancels_the_payment_and_frees_the_key(server):
    user = user_with()
    server.failing = True
    answer = api(user).post(
        "/api/v1/currency/purchase",
        {"amount_znc": "1.00", "return_url": RETURN_URL},
        format="json",
        headers={"Idempotency-Key": "k"},
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "payment_provider_unavailable")
    assert answer["Retry-After"]
    assert Payment.objects.get().status == "canceled"
    server.failing = False
    assert start(user, "1.00", idempotency_key="k").payment_url


def test_a_silent_provider_is_not_waited_for(server, settings):
    settings.PAYMENT_PROVIDER_TIMEOUT = 0.2
    server.silent = 1.0
    with pytest.raises(ProviderUnavailable):
        start(user_with())


def test_staff_refund_at_stripe(server):
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    send("checkout.session.completed", session)
    services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff, amount=Decimal("300.00"))
    refund = payment.refunds.get()
    assert (refund.status, refund.provider_refund_id[:3]) == ("done", "re_")
    [asked] = [request for request in server.requests if request[1] == "/v1/refunds"]
    assert asked[2]["idempotency-key"] == f"refund-{refund.pk}"
    assert (asked[3]["amount"], asked[3]["payment_intent"]) == ("30000", session["payment_intent"])
    assert standing(user) == ("70.00", "0.00")
    send("charge.refunded", server.charge(session["id"], refunded=30000), "evt_2")
    assert standing(user) == ("70.00", "0.00")


def test_a_refund_whose_answer_was_lost_is_finished_once(server, settings):
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    send("checkout.session.completed", server.pay(payment.provider_payment_id))
    server.failing = True
    with pytest.raises(ProviderUnavailable):
        services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff)
    assert standing(user) == ("100.00", "0.00")
    server.failing = False
    payment.refunds.update(created_at=timezone.now() - 2 * services.CREATION_GRACE)
    assert services.resume_refunds() == 1
    assert services.resume_refunds() == 0
    assert standing(user) == ("0.00", "0.00")
    refunds = [request for request in server.requests if request[1] == "/v1/refunds"]
    assert len({request[2]["idempotency-key"] for request in refunds}) == 1


def test_a_refund_is_not_asked_for_again_when_its_key_is_forgotten(server):
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    send("checkout.session.completed", server.pay(payment.provider_payment_id))
    server.failing = True
    with pytest.raises(ProviderUnavailable):
        services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff)
    server.failing = False
    asked = len(server.requests)
    payment.refunds.update(created_at=timezone.now() - services.KEY_LIFETIME)
    assert services.resume_refunds() == 0
    assert len(server.requests) == asked
    assert payment.refunds.get().status == "unknown"
    assert standing(user) == ("100.00", "0.00")


def test_a_refund_that_fails_takes_nothing(server):
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    send("checkout.session.completed", server.pay(payment.provider_payment_id))
    server.refund_status = "failed"
    with pytest.raises(ProviderRefused):
        services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff)
    assert payment.refunds.get().status == "refused"
    assert standing(user) == ("100.00", "0.00")


def test_a_refund_that_stripe_refuses_takes_nothing(server):
    user, staff = user_with(), StaffFactory()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    send("checkout.session.completed", session)
    server.charge(session["id"], refunded=100000)
    with pytest.raises(ProviderRefused):
        services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff)
    assert payment.refunds.get().status == "refused"
    assert standing(user) == ("100.00", "0.00")


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_the_provider_is_called(server, monkeypatch):
    calls: list[tuple[str, bool]] = []

    def watch(name: str) -> None:
        original = getattr(StripeProvider, name)

        def watched(self: Any, *args: Any) -> Any:
            calls.append((name, connection.in_atomic_block))
            return original(self, *args)

        monkeypatch.setattr(StripeProvider, name, watched)

    for name in ("create", "fetch", "refund", "interpret"):
        watch(name)
    user, staff = user_with(), StaffFactory()
    body = {"amount_znc": "100.00", "return_url": RETURN_URL}
    answer = api(user).post("/api/v1/currency/purchase", body, format="json", headers={"Idempotency-Key": "k"})
    payment = Payment.objects.get(pk=answer.json()["payment_id"])
    send("checkout.session.completed", server.pay(payment.provider_payment_id))
    services.ask_provider(payment_id=payment.pk)
    services.refund_payment(payment_id=payment.pk, reason="asked", actor=staff)
    assert calls == [(name, False) for name in ("create", "interpret", "fetch", "refund", "fetch")]


def open_many(server: StripeServer, owners: list[Any]) -> list[Payment]:
    """Open a payment of 10.00 ZNC for each, as :func:`start` does, without a request for each."""
    model = start(owners[0], "10.00")
    payments: list[Payment] = []
    for owner in owners:
        payment = Payment.objects.get(pk=model.pk)
        payment.pk = payment.id = uuid.uuid4()
        payment.user = owner
        payment.provider_payment_id = session_id = f"cs_test_copy_{len(payments)}"
        server.sessions[session_id] = server.sessions[str(model.provider_payment_id)] | {
            "id": session_id,
            "metadata": {"payment_id": str(payment.pk)},
        }
        payments.append(payment)
    Payment.objects.filter(pk=model.pk).delete()
    return Payment.objects.bulk_create(payments)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_thousand_events_three_times_shuffled_from_eight_threads(server):
    """Each payment is credited once, whatever arrives how often and in which order."""
    users = [user_with() for _ in range(20)]
    deliveries: list[tuple[bytes, dict[str, str]]] = []
    expected: dict[Any, Decimal] = dict.fromkeys((user.pk for user in users), Decimal(0))
    opened = open_many(server, [users[number % len(users)] for number in range(500)])
    for number, payment in enumerate(opened):
        user = users[number % len(users)]
        session = server.pay(payment.provider_payment_id)
        events = [("checkout.session.completed", dict(session))]
        match number % 4:
            case 0:
                events.append(("charge.refunded", server.charge(session["id"], refunded=4000)))
                expected[user.pk] += Decimal("6.00")
            case 1:
                events.append(("charge.refunded", server.charge(session["id"], refunded=10000)))
            case 2:
                lost = server.dispute(session["id"], status="lost", amount=10000)
                events.append(("charge.dispute.closed", lost))
            case 3:
                events.append(("checkout.session.async_payment_succeeded", dict(session)))
                expected[user.pk] += Decimal("10.00")
        for index, (kind, subject) in enumerate(events):
            deliveries += [stripe_event(kind, subject, event_id=f"evt_{number}_{index}")] * 3
    assert len(deliveries) == 3000
    random.shuffle(deliveries)
    start_together = threading.Barrier(8, timeout=30)

    def deliver(worker: int) -> set[int]:
        start_together.wait()
        try:
            client = Client()
            return {
                client.post("/api/v1/webhooks/payment/stripe", body, "application/json", headers=headers).status_code
                for body, headers in deliveries[worker::8]
            }
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        statuses = set().union(*pool.map(deliver, range(8)))
    assert statuses == {200}
    assert {user.pk: balance_of(user).balance for user in users} == expected
    assert Transfer.objects.filter(kind="DEPOSIT").count() == 500
    assert PaymentEvent.objects.filter(processed_at__isnull=False).count() == PaymentEvent.objects.count() == 1000
    numbers = sorted(map(str, Payment.objects.values_list("receipt_number", flat=True)))
    assert numbers == [f"{timezone.now().year}-{n:06d}" for n in range(1, 501)]
    assert [drift for outcome in reconcile() for drift in outcome.drifts] == []


def test_a_session_is_known_by_its_own_id_too(server):
    user = user_with()
    payment = start(user)
    session = server.pay(payment.provider_payment_id)
    send("checkout.session.completed", {**session, "metadata": {}})
    assert standing(user) == ("100.00", "0.00")

"""Payments and currencies in the back office."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.utils import timezone

from tests.factories import StaffFactory, SuperuserFactory
from tests.money import staff_client, user_with
from wallet.models import Currency, ExchangeRate, Payment, PaymentDispute, PaymentEvent, PaymentRefund, ReceiptSeries
from wallet.payments import services
from wallet.payments.providers import mock
from wallet.selectors import balance_of

pytestmark = pytest.mark.django_db
LIST = "/admin/wallet/payment/"


def start(user: Any) -> Payment:
    return services.start_payment(user=user, amount_znc=Decimal("100.00"), return_url="http://localhost:61000/")


def pay(payment: Payment) -> Payment:
    return services.settle_mock_payment(payment_id=payment.pk, succeed=True)


def act(client: Any, action: str, *payments: Payment, **extra: Any) -> Any:
    data = {"action": action, "_selected_action": [str(payment.pk) for payment in payments], **extra}
    return client.post(LIST, data, follow=True)


def staff_with(*permissions: str) -> Any:
    staff: Any = StaffFactory()
    staff.user_permissions.set(Permission.objects.filter(codename__in=("view_payment", *permissions)))
    return staff_client(staff)


def test_every_page_shows_and_none_changes_a_payment():
    client = staff_client(SuperuserFactory())
    payment = pay(start(user_with()))
    for path in (
        LIST,
        f"{LIST}{payment.pk}/change/",
        "/admin/wallet/paymentevent/?open=yes",
        f"/admin/wallet/paymentevent/{PaymentEvent.objects.get().pk}/change/",
        "/admin/wallet/currency/",
        "/admin/wallet/currency/RUB/change/",
        "/admin/wallet/exchangerate/",
        "/admin/wallet/exchangerate/add/",
    ):
        assert client.get(path).status_code == 200, path
    for path in (f"{LIST}{payment.pk}/change/", f"{LIST}{payment.pk}/delete/", f"{LIST}add/"):
        assert client.post(path, {"status": "canceled"}).status_code == 403, path
    payment.refresh_from_db()
    assert payment.status == "succeeded"


def test_the_list_asks_a_fixed_number_of_queries(django_assert_max_num_queries):
    client = staff_client(SuperuserFactory())
    for _ in range(8):
        pay(start(user_with()))
    with django_assert_max_num_queries(14):
        assert client.get(LIST).status_code == 200


def test_staff_add_a_rate_and_never_edit_one():
    client = staff_client(SuperuserFactory())
    now = timezone.now()
    data = {
        "currency": "USD",
        "znc_amount": "8.5",
        "currency_amount": "1",
        "effective_from_0": now.date().isoformat(),
        "effective_from_1": now.time().isoformat("seconds"),
    }
    assert client.post("/admin/wallet/exchangerate/add/", data).status_code == 302
    rate = ExchangeRate.objects.filter(currency="USD").latest("effective_from")
    assert rate.znc_amount == Decimal("8.5")
    assert client.post(f"/admin/wallet/exchangerate/{rate.pk}/change/", data).status_code == 403
    assert client.post(f"/admin/wallet/exchangerate/{rate.pk}/delete/", {"post": "yes"}).status_code == 403
    data = {"code": "JPY", "name": "Yen", "minor_unit_digits": "0", "is_active": "on"}
    assert client.post("/admin/wallet/currency/add/", data).status_code == 302
    assert client.post("/admin/wallet/currency/add/", data | {"code": "yen"}).status_code == 200
    assert Currency.objects.get(code="JPY").minor_unit_digits == 0
    assert not Currency.objects.filter(name="Yen").exclude(code="JPY").exists()


def test_asking_again_settles_what_was_missed():
    user = user_with()
    payment = start(user)
    payload = mock.notification(payment, mock.SUCCEEDED, event_id="e").payload
    PaymentEvent.objects.create(provider="mock", event_id="e", kind=mock.SUCCEEDED, payload=payload, payment=payment)
    act(staff_with(), "ask_provider", payment)
    act(staff_with("refund_payment"), "ask_provider", payment)
    assert balance_of(user).balance == 0
    page = act(staff_with("ask_provider"), "ask_provider", payment)
    assert b"Succeeded" in page.content
    assert balance_of(user).balance == Decimal("100.00")


def test_an_event_is_carried_out_again():
    user = user_with()
    payment = start(user)
    payload = mock.notification(payment, mock.SUCCEEDED, event_id="e").payload
    event = PaymentEvent.objects.create(provider="mock", event_id="e", kind=mock.SUCCEEDED, payload=payload)
    data = {"action": "process_again", "_selected_action": [str(event.pk)]}
    assert staff_client(SuperuserFactory()).post("/admin/wallet/paymentevent/", data).status_code == 302
    assert balance_of(user).balance == Decimal("100.00")


def test_a_refund_asks_for_a_reason_and_for_the_permission():
    user = user_with()
    payment, pending = pay(start(user)), start(user)
    act(staff_with("ask_provider"), "refund", payment, confirm="1", reason="x")
    client = staff_with("refund_payment")
    page = act(client, "refund", payment, pending)
    assert b'name="reason"' in page.content
    act(client, "refund", payment, pending, confirm="1", reason="")
    act(client, "refund", payment, pending, confirm="1", reason="x", amount="-1")
    act(client, "refund", payment, pending, confirm="1", reason="x", amount="1000.01")
    assert balance_of(user).balance == Decimal("100.00")
    page = act(client, "refund", payment, pending, confirm="1", reason="asked for", amount="400")
    assert b"1 payment refunded." in page.content
    assert b"The payment cannot be refunded." in page.content
    assert balance_of(user).balance == Decimal("60.00")
    assert payment.refunds.get().reason == "asked for"
    act(client, "refund", payment, confirm="1", reason="the rest")
    assert balance_of(user).balance == 0


def test_what_the_provider_refuses_to_tell_is_shown_and_changes_nothing(settings):
    user = user_with()
    payment = start(user)
    payload = mock.notification(payment, mock.SUCCEEDED, event_id="e", amount="1.00").payload
    event = PaymentEvent.objects.create(provider="mock", event_id="e", kind=mock.SUCCEEDED, payload=payload)
    client = staff_client(SuperuserFactory())
    page = client.post(
        "/admin/wallet/paymentevent/", {"action": "process_again", "_selected_action": [str(event.pk)]}, follow=True
    )
    assert b"another amount" in page.content
    event.refresh_from_db()
    assert event.processed_at is None
    settings.PAYMENT_PROVIDERS = []
    assert b"not available" in act(client, "ask_provider", payment).content
    payment.refresh_from_db()
    assert payment.status == "pending"
    assert balance_of(user).balance == 0


def test_each_row_has_a_name_for_people():
    payment = pay(start(user_with()))
    refund = PaymentRefund(payment=payment, amount=Decimal("1.00"), status=PaymentRefund.Status.DONE)
    dispute = PaymentDispute(payment=payment, provider_dispute_id="dp_1", outcome=PaymentDispute.Outcome.OPEN)
    assert str(refund) == "1.00 done"
    assert str(dispute) == "dp_1 open"
    assert str(ReceiptSeries.objects.get()) == f"{timezone.now().year}: 1"

"""POST /currency/mock-purchase."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps

from tests.money import api, user_with
from tests.threads import run_at_once
from wallet.exceptions import AlreadyPosted, MockPaymentsDisabled
from wallet.models import Account, Transfer
from wallet.selectors import balance_of
from wallet.services import top_up_mock

pytestmark = pytest.mark.django_db
URL = "/api/v1/currency/mock-purchase"


def post(user: Any, amount: Any, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return api(user).post(URL, {"amount": amount}, format="json", headers=headers)


@pytest.mark.parametrize(
    ("amount", "credited"), [("100", "100.00"), ("0.01", "0.01"), (5, "5.00"), ("12.50", "12.50"), (" 7.00 ", None)]
)
def test_a_top_up_is_credited(amount, credited):
    user = user_with()
    answer = post(user, amount)
    if credited is None:
        assert answer.status_code == 400
        return
    assert answer.status_code == 201
    assert answer.json() == {
        "success": True,
        "amount": credited,
        "new_balance": credited,
        "message": "The balance was topped up.",
    }
    [posted] = Transfer.objects.all()
    assert (posted.kind, posted.amount, posted.debit_account.system) == ("DEPOSIT", Decimal(credited), "gateway:mock")


def test_a_json_number_with_two_decimals_is_money():
    user = user_with()
    answer = api(user).post(URL, '{"amount": 19.99}', content_type="application/json")
    assert answer.json()["new_balance"] == "19.99"


BAD_AMOUNTS = [
    "0",
    "0.00",
    "-1",
    "-0.01",
    "0.001",
    "1.005",
    "NaN",
    "sNaN",
    "Infinity",
    "-Infinity",
    "1e3",
    "1E3",
    "1_000",
    "1 000",
    "１",
    "٣",
    "0x10",
    "",
    "ten",
    "100000000.00",
    "9" * 400,
    "99999999.999",
    True,
    False,
    None,
    [],
    ["1.00"],
    {},
    {"amount": "1.00"},
    0,
    -5,
    10**30,
]


@pytest.mark.parametrize("amount", BAD_AMOUNTS, ids=lambda value: repr(value)[:24])
def test_what_is_not_an_amount_is_refused_and_nothing_moves(amount):
    user = user_with("1.00")
    answer = post(user, amount)
    assert answer.status_code == 400
    assert answer.json()["code"] == "validation_error"
    assert list(answer.json()["errors"]) == ["amount"]
    assert balance_of(user).balance == Decimal("1.00")
    assert Transfer.objects.count() == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"100"',
        b'{"amount": NaN}',
        b'{"amount": Infinity}',
        b'{"amount": 1e3}',
        b'{"amount": 0.001}',
        b'{"amount": 1e999999999}',
        b'{"amount": "\\u0000"}',
        b'{"amount": "\xff"}',
        b'{"amount": ' + b"9" * 5000 + b"}",
        b'{"amount"',
        b"{}",
    ],
    ids=lambda body: repr(body)[:28],
)
def test_malformed_bodies_are_refused_and_nothing_moves(body):
    user = user_with()
    answer = api(user).post(URL, body, content_type="application/json")
    assert answer.status_code == 400
    assert set(answer.json()) >= {"detail", "code", "request_id"}
    assert Transfer.objects.count() == 0


def test_above_the_largest_balance_is_refused_and_nothing_moves():
    user = user_with("99999999.99")
    answer = post(user, "0.01")
    assert (answer.status_code, answer.json()["code"]) == (400, "balance_limit_exceeded")
    assert balance_of(user).balance == Decimal("99999999.99")
    assert Transfer.objects.count() == 1


def test_without_the_mock_provider_there_is_no_such_route(settings):
    user = user_with()
    settings.PAYMENT_PROVIDERS = []
    for amount in ("100.00", "nonsense"):
        answer = post(user, amount)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    with pytest.raises(MockPaymentsDisabled):
        top_up_mock(user=user, amount=Decimal("1.00"))
    assert not Account.objects.filter(user=user).exists()


def test_nobody_signed_in_tops_up_nothing():
    assert api().post(URL, {"amount": "1.00"}, format="json").status_code in {401, 403}
    assert Transfer.objects.count() == 0


def test_the_event_is_recorded_with_the_money():
    user = user_with()
    post(user, "5.00")
    [event] = apps.get_model("notifications.OutboxEvent").objects.all()
    assert (event.event, event.user) == ("payment.succeeded", user)
    assert event.data == {
        "provider": "mock",
        "transfer_id": str(Transfer.objects.get().public_id),
        "amount": "5.00",
        "balance": "5.00",
    }


def test_a_reference_is_credited_once():
    user = user_with()
    top_up_mock(user=user, amount=Decimal("100.00"), reference="demo")
    with pytest.raises(AlreadyPosted):
        top_up_mock(user=user, amount=Decimal("100.00"), reference="demo")
    assert balance_of(user).balance == Decimal("100.00")


def test_the_same_key_replays_the_answer():
    user = user_with()
    first, second = (post(user, "10.00", key="key-1") for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    assert "Idempotent-Replayed" not in first
    assert second["Idempotent-Replayed"] == "true"
    assert balance_of(user).balance == Decimal("10.00")


def test_the_same_key_for_another_body_is_refused():
    user = user_with()
    post(user, "10.00", key="key-1")
    answer = post(user, "11.00", key="key-1")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert balance_of(user).balance == Decimal("10.00")


def test_a_key_belongs_to_its_user():
    one, other = user_with(), user_with()
    post(one, "10.00", key="key-1")
    assert post(other, "11.00", key="key-1").status_code == 201
    assert (balance_of(one).balance, balance_of(other).balance) == (Decimal("10.00"), Decimal("11.00"))


def test_a_refused_request_does_not_spend_its_key():
    user = user_with("99999999.99")
    assert post(user, "1.00", key="key-1").status_code == 400
    Account.objects.filter(user=user).update(balance=Decimal("0.00"))
    assert post(user, "1.00", key="key-1").status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "ключ".encode().decode("latin-1"), "tab\there"])
def test_a_malformed_key_is_refused_and_nothing_moves(key):
    user = user_with()
    answer = post(user, "1.00", key=key)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key")
    assert Transfer.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_twenty_requests_with_one_key_credit_once():
    user = user_with()
    answers = run_at_once(20, lambda _: post(user, "10.00", key="one"))
    outcomes = [(answer.status_code, answer.json().get("code")) for answer in answers]
    assert set(outcomes) <= {(201, None), (409, "request_in_flight")}
    done = [answer for answer in answers if answer.status_code == 201]
    assert len([answer for answer in done if "Idempotent-Replayed" not in answer]) == 1
    assert {json.dumps(answer.json()) for answer in done} == {json.dumps(done[0].json())}
    assert balance_of(user).balance == Decimal("10.00")
    assert Transfer.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_simultaneous_top_ups_all_count():
    user = user_with()
    answers = run_at_once(20, lambda _: post(user, "1.11"))
    assert {answer.status_code for answer in answers} == {201}
    assert balance_of(user).balance == Decimal("22.20")
    assert Transfer.objects.count() == 20

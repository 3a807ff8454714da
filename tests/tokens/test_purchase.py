"""POST /tokens/purchase and the service behind it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.money import api, user_with
from tests.threads import run_at_once
from tokens import secrets
from tokens.models import AccessToken, Scope, TokenPrice
from tokens.services import purchase_token
from wallet.models import Transfer
from wallet.selectors import balance_of
from zenzefi.lib.models import IdempotencyRecord

pytestmark = pytest.mark.django_db
URL = "/api/v1/tokens/purchase"


def post(user: Any, body: dict[str, Any] | None = None, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return api(user).post(URL, {"duration_hours": 24} if body is None else body, format="json", headers=headers)


def assert_nothing_bought(user: Any, balance: str) -> None:
    assert balance_of(user).balance == Decimal(balance)
    assert not AccessToken.objects.filter(owner=user).exists()
    assert not Transfer.objects.filter(kind="PURCHASE").exists()
    assert not apps.get_model("notifications.OutboxEvent").objects.filter(event="token.purchased").exists()


def test_a_token_is_bought():
    user = user_with("100.00")
    answer = post(user, {"duration_hours": 24, "scope": "certificates_only", "label": "workshop"})
    assert answer.status_code == 201
    body = answer.json()
    token = AccessToken.objects.get(pk=body["id"])
    assert body == {
        "id": str(token.id),
        "token": body["token"],
        "token_hint": f"znz_…{body['token'][-4:]}",
        "label": "workshop",
        "duration_hours": 24,
        "scope": "certificates_only",
        "cost_znc": "18.00",
        "refunded_znc": "0.00",
        "status": "ready",
        "is_active": True,
        "created_at": body["created_at"],
        "activated_at": None,
        "expires_at": None,
        "revoked_at": None,
        "time_remaining_seconds": None,
        "device": None,
        "allowed_ips": [],
        "auto_renew": False,
        "renewal": {"status": "off", "due_at": None, "paused_reason": "", "renewed_by": None},
        "renews": None,
        "new_balance": "82.00",
    }
    assert secrets.is_well_formed(body["token"])
    assert answer["Cache-Control"] == "no-store"
    assert (token.owner, token.paid, token.list_price) == (user, Decimal("18.00"), Decimal("18.00"))
    assert balance_of(user).balance == Decimal("82.00")
    posted = Transfer.objects.get(kind="PURCHASE")
    assert (posted.amount, posted.source, posted.credit_account.system) == (
        Decimal("18.00"),
        f"token:{token.id}",
        "revenue",
    )


def test_the_defaults():
    body = post(user_with("100.00")).json()
    assert (body["scope"], body["label"]) == ("full", "")


@pytest.mark.parametrize(
    ("duration_hours", "price"), [(1, "1.00"), (12, "10.00"), (24, "18.00"), (168, "100.00"), (720, "300.00")]
)
def test_the_price_list(duration_hours, price):
    user = user_with("300.00")
    body = post(user, {"duration_hours": duration_hours}).json()
    assert body["cost_znc"] == price
    assert balance_of(user).balance == Decimal("300.00") - Decimal(price)


def test_what_was_bought_keeps_its_price():
    user = user_with("100.00")
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal("20.00"))
    body = post(user).json()
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal("1.00"))
    assert api(user).get(f"/api/v1/tokens/{body['id']}").json()["cost_znc"] == "20.00"


def test_the_token_is_stored_nowhere_in_clear():
    user = user_with("100.00")
    secret = post(user, key="key-1").json()["token"]
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT count(*) FROM "{table}" AS t WHERE t::text LIKE %s', [f"%{secret[4:30]}%"])
            assert cursor.fetchone() == (0,), table
    assert bytes(IdempotencyRecord.objects.get().answer).find(secret.encode()) == -1


def test_the_secret_is_not_in_the_representation_of_the_result():
    bought = purchase_token(owner=user_with("100.00"), duration_hours=24)
    assert bought.secret not in repr(bought)


def test_the_event_is_recorded_without_the_secret():
    user = user_with("100.00")
    body = post(user).json()
    event = apps.get_model("notifications.OutboxEvent").objects.get(event="token.purchased")
    assert event.user == user
    assert event.data == {
        "token_id": body["id"],
        "duration_hours": 24,
        "scope": "full",
        "paid": "18.00",
        "balance": "82.00",
    }


def test_too_little_balance_buys_nothing():
    user = user_with("17.99")
    answer = post(user)
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_balance")
    assert_nothing_bought(user, "17.99")


def test_a_user_who_never_topped_up_buys_nothing():
    user = user_with()
    assert post(user).status_code == 402
    assert_nothing_bought(user, "0.00")


@pytest.mark.parametrize("duration_hours", [2, 23, 25, 999_999_999, 0])
def test_a_duration_that_is_not_sold(duration_hours):
    user = user_with("500.00")
    answer = post(user, {"duration_hours": duration_hours})
    assert (answer.status_code, answer.json()["code"]) == (400, "duration_not_sold")
    assert_nothing_bought(user, "500.00")


def test_a_duration_that_is_sold_no_more():
    TokenPrice.objects.filter(duration_hours=24).update(is_active=False)
    user = user_with("500.00")
    assert post(user).json()["code"] == "duration_not_sold"
    assert_nothing_bought(user, "500.00")


@pytest.mark.parametrize("scope", ["everything", "FULL", "full ' or 1=1"])
def test_a_scope_that_is_not_sold(scope):
    user = user_with("500.00")
    answer = post(user, {"duration_hours": 24, "scope": scope})
    assert (answer.status_code, answer.json()["code"]) == (400, "scope_not_sold")
    assert_nothing_bought(user, "500.00")


def test_a_scope_that_is_sold_no_more():
    Scope.objects.filter(slug="full").update(is_active=False)
    user = user_with("500.00")
    assert post(user).json()["code"] == "scope_not_sold"
    assert_nothing_bought(user, "500.00")


MALFORMED: dict[str, list[Any]] = {
    "duration_hours": ["x", "", None, True, [], {}, "-1", -24, "24.0", 24.5, "1e1", "２４", "24 ", 10**12, "9" * 400],
    "scope": ["", None, [], {}, True, 5, "s" * 65],
    "label": [None, [], {}, True, 5, "l" * 101],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in MALFORMED.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_malformed_fields_buy_nothing(field, value):
    user = user_with("500.00")
    answer = post(user, {"duration_hours": 24, field: value})
    assert answer.status_code == 400
    assert answer.json()["code"] == "validation_error"
    assert list(answer.json()["errors"]) == [field]
    assert_nothing_bought(user, "500.00")


def test_without_a_duration_nothing_is_bought():
    user = user_with("500.00")
    assert list(post(user, {}).json()["errors"]) == ["duration_hours"]
    assert_nothing_bought(user, "500.00")


def test_what_the_caller_may_not_choose_is_ignored():
    user = user_with("500.00")
    body = post(user, {"duration_hours": 24, "cost_znc": "0.01", "paid": "0.01", "owner": "x", "id": "y"}).json()
    assert body["cost_znc"] == "18.00"


def test_the_same_key_returns_the_same_token():
    user = user_with("100.00")
    first, second = (post(user, key="key-1") for _ in range(2))
    assert first.json() == second.json()
    assert second["Idempotent-Replayed"] == "true"
    assert balance_of(user).balance == Decimal("82.00")
    assert AccessToken.objects.filter(owner=user).count() == 1


def test_a_key_works_again_after_a_refusal():
    user = user_with("10.00")
    assert post(user, key="key-1").status_code == 402
    api(user).post("/api/v1/currency/mock-purchase", {"amount": "10.00"}, format="json")
    assert post(user, key="key-1").status_code == 201


def test_nobody_signed_in_buys_nothing():
    assert api().post(URL, {"duration_hours": 24}, format="json").status_code in {401, 403}
    assert AccessToken.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_the_number_of_queries_is_fixed():
    user = user_with("500.00")
    counts = set()
    for _ in range(3):
        with CaptureQueriesContext(connection) as queries:
            purchase_token(owner=user, duration_hours=24)
        counts.add(len(queries))
    # BEGIN, lock, price, scope, default of renewal, lock in the posting, savepoint, transfer, release, balance, token,
    # event, COMMIT.
    assert counts == {13}


@pytest.mark.django_db(transaction=True)
def test_twenty_requests_with_one_key_buy_once():
    user = user_with("100.00")
    answers = run_at_once(20, lambda _: post(user, key="one"))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.json()["token"] for answer in answers if answer.status_code == 201}) == 1
    assert balance_of(user).balance == Decimal("82.00")
    assert AccessToken.objects.filter(owner=user).count() == 1

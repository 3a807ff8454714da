"""GET /currency/transactions."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.money import api, user_with
from tokens.services import purchase_token, revoke_token
from wallet.models import Transfer
from wallet.selectors import transactions_of
from wallet.services import TransferKind, open_account, system_account_id, top_up_mock, transfer

pytestmark = pytest.mark.django_db
URL = "/api/v1/currency/transactions"


@pytest.fixture
def user():
    """Topped up 100.00, bought 18.00, refunded 18.00."""
    user = user_with("100.00")
    bought = purchase_token(owner=user, duration_hours=24)
    revoke_token(token_id=bought.token.id, actor=user, refund=True)
    return user


def test_the_callers_side_newest_first(user):
    answer = api(user).get(URL)
    assert answer.status_code == 200
    page = answer.json()
    assert (page["total"], page["limit"], page["offset"]) == (3, 50, 0)
    assert [(row["transaction_type"], row["amount"], row["balance_after"]) for row in page["items"]] == [
        ("refund", "18.00", "100.00"),
        ("purchase", "-18.00", "82.00"),
        ("deposit", "100.00", "100.00"),
    ]
    first = page["items"][0]
    assert set(first) == {
        "id",
        "amount",
        "transaction_type",
        "description",
        "payment_id",
        "balance_after",
        "created_at",
    }
    assert first["payment_id"] is None
    assert first["description"]
    assert Transfer.objects.get(public_id=uuid.UUID(first["id"])).kind == "REFUND"
    assert datetime.fromisoformat(first["created_at"]).tzinfo == UTC
    assert first["created_at"].endswith("Z")


def test_both_users_of_a_transfer_see_their_own_side():
    payer, payee = user_with("10.00"), user_with("1.00")
    transfer(
        debit_account=open_account(payer),
        credit_account=open_account(payee),
        amount=Decimal("4.00"),
        kind=TransferKind.ADJUSTMENT,
        source="test:1",
    )
    mine, theirs = (api(someone).get(URL).json()["items"][0] for someone in (payer, payee))
    assert (mine["amount"], mine["balance_after"]) == ("-4.00", "6.00")
    assert (theirs["amount"], theirs["balance_after"]) == ("4.00", "5.00")


def test_a_user_without_an_account_has_none():
    assert transactions_of(user_with())[0:50] == []


def test_nobody_sees_the_transactions_of_others(user):
    assert api(user_with()).get(URL).json() == {"items": [], "total": 0, "limit": 50, "offset": 0}


@pytest.mark.parametrize("text", ["purchase", "PURCHASE", "Purchase"])
def test_the_type_is_filtered_in_any_case(user, text):
    page = api(user).get(URL, {"transaction_type": text}).json()
    assert [row["transaction_type"] for row in page["items"]] == ["purchase"]
    assert page["total"] == 1


def test_filtered_by_time(user):
    moments = [row["created_at"] for row in api(user).get(URL).json()["items"]]
    newest, middle, oldest = moments
    assert api(user).get(URL, {"created_after": middle}).json()["total"] == 2
    assert api(user).get(URL, {"created_before": middle}).json()["total"] == 2
    both = api(user).get(URL, {"created_after": middle, "created_before": middle}).json()
    assert [row["transaction_type"] for row in both["items"]] == ["purchase"]
    after = (datetime.fromisoformat(newest) + timedelta(seconds=1)).isoformat()
    assert api(user).get(URL, {"created_after": after}).json()["total"] == 0
    assert oldest < middle < newest


def test_pages(user):
    page = api(user).get(URL, {"limit": 1, "offset": 1}).json()
    assert [row["transaction_type"] for row in page["items"]] == ["purchase"]
    assert (page["total"], page["limit"], page["offset"]) == (3, 1, 1)
    assert api(user).get(URL, {"offset": 3}).json()["items"] == []


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "101"},
        {"limit": "x"},
        {"limit": ""},
        {"offset": "-1"},
        {"offset": "10000001"},
        {"transaction_type": "theft"},
        {"created_after": "yesterday"},
        {"created_before": "2026-13-01"},
        {"created_before": "99999-01-01T00:00:00Z"},
    ],
    ids=str,
)
def test_malformed_filters_are_refused_by_name(user, query):
    answer = api(user).get(URL, query)
    assert answer.status_code == 400
    assert answer.json()["code"] == "validation_error"
    assert set(answer.json()["errors"]) == set(query)


def test_the_number_of_queries_does_not_grow(user):
    client = api(user)
    with CaptureQueriesContext(connection) as few:
        client.get(URL)
    for _ in range(30):
        top_up_mock(user=user, amount=Decimal("1.00"))
    with CaptureQueriesContext(connection) as many:
        client.get(URL)
    assert len(few) == len(many) == 2


def test_a_page_of_a_long_history_reads_a_page_of_rows():
    """Neither the rest of the history nor the newer transfers of others are read for one page."""
    user, others = user_with(), user_with()
    for someone in (user, others):
        account = open_account(someone)
        sides = [account.pk, system_account_id("revenue"), system_account_id("revenue"), account.pk]
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO wallet_transfer (public_id, debit_account_id, credit_account_id, amount, kind, source,"
                " description, created_at) SELECT gen_random_uuid(),"
                " CASE WHEN n %% 2 = 0 THEN %s::uuid ELSE %s::uuid END,"
                " CASE WHEN n %% 2 = 0 THEN %s::uuid ELSE %s::uuid END,"
                " 1.00, 'ADJUSTMENT', %s || n, '', now() FROM generate_series(1, 20000) AS n",
                [*sides, f"test:{someone.pk}:"],
            )
            cursor.execute("UPDATE wallet_account SET postings = 20000 WHERE id = %s", [account.pk])
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE wallet_transfer")
    with CaptureQueriesContext(connection) as queries:
        page = api(user).get(URL).json()
    assert page["total"] == 20000
    assert [row["amount"] for row in page["items"]] == ["-1.00", "1.00"] * 25
    statement = queries[-1]["sql"]
    assert "UNION ALL" in statement
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")
        [[report]] = cursor.fetchone()
    nodes = _plan_nodes(report["Plan"])
    assert max(node["Actual Rows"] for node in nodes) <= 100
    read = {node.get("Index Name") for node in nodes if node.get("Relation Name") == "wallet_transfer"}
    assert read == {"wallet_transfer_debit", "wallet_transfer_credit"}


def _plan_nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _plan_nodes(child))]

"""GET /currency/statement."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.test import AsyncClient
from django.test.utils import CaptureQueriesContext

from accounts import access_tokens
from tests.api import Api
from tests.factories import UserFactory
from tests.money import api, user_with
from tokens.services import purchase_token, revoke_token
from wallet import statements
from wallet.models import Transfer
from wallet.services import SystemAccount, TransferKind, claw_back, credit, open_account, top_up_mock
from wallet.statements import Statement
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db
URL = "/api/v1/currency/statement"


@pytest.fixture
def at(monkeypatch):
    """Move the clock by which transfers are dated."""

    def move(moment: str) -> None:
        monkeypatch.setattr("django.utils.timezone.now", lambda: datetime.fromisoformat(f"{moment}+00:00"))

    return move


def text_of(answer: Any) -> str:
    return b"".join(answer.streaming_content).decode()


def get(user: Any, **query: str) -> dict[str, Any]:
    answer = api(user).get(URL, query)
    assert answer.status_code == 200, answer.content
    assert answer.headers["Content-Type"] == "application/json"
    return json.loads(text_of(answer))


def get_csv(user: Any, **query: str) -> list[list[str]]:
    answer = api(user).get(URL, {**query, "format": "csv"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.reader(io.StringIO(text_of(answer), newline="")))


def assert_adds_up(statement: dict[str, Any]) -> None:
    opening = Decimal(statement["opening_balance"]) - Decimal(statement["opening_owed"])
    closing = Decimal(statement["closing_balance"]) - Decimal(statement["closing_owed"])
    assert opening + sum(Decimal(row["amount"]) for row in statement["rows"]) == closing
    if statement["rows"]:
        last = statement["rows"][-1]
        assert (last["balance_after"], last["owed_after"]) == (statement["closing_balance"], statement["closing_owed"])


@pytest.fixture
def quarter(at) -> Any:
    """A user with a top-up in October, a purchase and a refund in November, and a top-up in December."""
    at("2026-10-05T09:00:00")
    user = user_with("100.00")
    at("2026-11-01T00:00:00")
    token = purchase_token(owner=user, duration_hours=24).token
    at("2026-11-30T23:59:59.999999")
    revoke_token(token_id=token.id, actor=user, refund=True)
    at("2026-12-01T00:00:00")
    top_up_mock(user=user, amount=Decimal("7.50"))
    at("2026-12-02T12:00:00")
    return user


def test_a_month_with_its_first_and_last_moment(quarter):
    statement = get(quarter, **{"from": "2026-11-01", "to": "2026-11-30"})
    assert_adds_up(statement)
    rows = statement.pop("rows")
    assert statement == {
        "from": "2026-11-01T00:00:00.000000Z",
        "to": "2026-12-01T00:00:00.000000Z",
        "currency": "ZNC",
        "opening_balance": "100.00",
        "opening_owed": "0.00",
        "closing_balance": "100.00",
        "closing_owed": "0.00",
    }
    posted = Transfer.objects.get(kind="PURCHASE")
    assert rows[0] == {
        "created_at": "2026-11-01T00:00:00.000000Z",
        "id": str(posted.public_id),
        "transaction_type": "purchase",
        "description": "Access token, 24 h",
        "amount": "-18.00",
        "balance_after": "82.00",
        "owed_after": "0.00",
    }
    assert [(row["transaction_type"], row["amount"]) for row in rows] == [("purchase", "-18.00"), ("refund", "18.00")]


@pytest.mark.parametrize(
    ("period", "opening", "closing", "rows"),
    [
        ({}, "0.00", "107.50", 4),
        ({"from": "2026-12-01"}, "100.00", "107.50", 1),
        ({"to": "2026-10-31"}, "0.00", "100.00", 1),
        ({"from": "2026-11-01T00:00:00Z", "to": "2026-11-30T23:59:59.999999Z"}, "100.00", "82.00", 1),
        ({"from": "2026-11-01T03:00:00+03:00", "to": "2026-11-02"}, "100.00", "82.00", 1),
        ({"from": "2026-11-01T00:00:00.000001Z", "to": "2026-11-02"}, "82.00", "82.00", 0),
        ({"from": "2026-11-02", "to": "2026-11-02"}, "82.00", "82.00", 0),
        ({"from": "0001-01-01", "to": "9998-12-31"}, "0.00", "107.50", 4),
        ({"from": "2026-10-05T09:00:00Z", "to": "2026-10-05T09:00:00Z"}, "0.00", "0.00", 0),
    ],
    ids=str,
)
def test_periods(quarter, period, opening, closing, rows):
    statement = get(quarter, **period)
    assert (statement["opening_balance"], statement["closing_balance"]) == (opening, closing)
    assert len(statement["rows"]) == rows
    assert_adds_up(statement)


def test_csv(quarter):
    lines = get_csv(quarter, **{"from": "2026-11-01", "to": "2026-11-30"})
    posted = {row.kind: str(row.public_id) for row in Transfer.objects.exclude(kind="DEPOSIT")}
    moment = "2026-11-01T00:00:00.000000Z"
    last = "2026-11-30T23:59:59.999999Z"
    assert lines == [
        ["created_at", "id", "transaction_type", "description", "amount", "balance_after", "owed_after"],
        [moment, "", "opening_balance", "", "", "100.00", "0.00"],
        [moment, posted["PURCHASE"], "purchase", "Access token, 24 h", "-18.00", "82.00", "0.00"],
        [last, posted["REFUND"], "refund", "Refund of an access token, 24 h", "18.00", "100.00", "0.00"],
        ["2026-12-01T00:00:00.000000Z", "", "closing_balance", "", "", "100.00", "0.00"],
    ]


def test_csv_is_a_file_with_the_period_in_its_name(quarter):
    answer = api(quarter).get(URL, {"from": "2026-11-01", "to": "2026-11-30", "format": "csv"})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="statement-20261101-20261201.csv"'
    assert text_of(answer).count("\r\n") == 5


@pytest.mark.parametrize(
    "description",
    ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x","y")', "＝1"],
)
def test_a_description_never_becomes_a_formula(description):
    user = user_with()
    with transaction.atomic():
        credit(
            account=open_account(user),
            counterparty=SystemAccount.ADJUSTMENTS,
            amount=Decimal("1.00"),
            kind=TransferKind.ADJUSTMENT,
            source="test:1",
            description=description,
        )
    [_head, _opening, row, _closing] = get_csv(user)
    assert row[3] == f"'{description}"
    assert get(user)["rows"][0]["description"] == description


def test_commas_quotes_and_lines_stay_one_cell():
    user = user_with()
    text = 'a, "b"\r\nc; d'
    with transaction.atomic():
        credit(
            account=open_account(user),
            counterparty=SystemAccount.ADJUSTMENTS,
            amount=Decimal("1.00"),
            kind=TransferKind.ADJUSTMENT,
            source="test:1",
            description=text,
        )
    assert get_csv(user)[2][3] == text


def test_a_debt_is_part_of_the_standing(at):
    at("2026-11-01T00:00:00")
    user = user_with("10.00")
    at("2026-11-02T00:00:00")
    with transaction.atomic():
        claw_back(
            account=open_account(user),
            counterparty=SystemAccount.GATEWAY_MOCK,
            amount=Decimal("15.00"),
            kind=TransferKind.CHARGEBACK,
            source="test:1",
        )
    at("2026-11-03T00:00:00")
    top_up_mock(user=user, amount=Decimal("7.00"))
    at("2026-11-04T00:00:00")
    first, second = get(user, to="2026-11-02"), get(user, **{"from": "2026-11-03"})
    assert (first["closing_balance"], first["closing_owed"]) == ("0.00", "5.00")
    assert (second["opening_balance"], second["opening_owed"], second["closing_balance"]) == ("0.00", "5.00", "2.00")
    assert_adds_up(first)
    assert_adds_up(second)


def test_nothing_yet():
    statement = get(UserFactory())
    assert (statement["opening_balance"], statement["closing_balance"], statement["rows"]) == ("0.00", "0.00", [])
    assert len(get_csv(UserFactory())) == 3


def test_only_ones_own():
    mine, other = user_with("1.00"), user_with("2.00")
    assert [row["amount"] for row in get(mine)["rows"]] == ["1.00"]
    assert [row["amount"] for row in get(other)["rows"]] == ["2.00"]


def test_transfers_between_two_users_stand_in_both():
    from wallet.services import transfer

    giver, taker = user_with("5.00"), user_with()
    with transaction.atomic():
        transfer(
            debit_account=open_account(giver),
            credit_account=open_account(taker),
            amount=Decimal("2.00"),
            kind=TransferKind.ADJUSTMENT,
            source="test:1",
        )
    assert [row["amount"] for row in get(giver)["rows"]] == ["5.00", "-2.00"]
    assert [row["amount"] for row in get(taker)["rows"]] == ["2.00"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-13-01"}, "from"),
        ({"to": "2026-02-30"}, "to"),
        ({"to": "9999-12-31"}, "to"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
        ({"from": "2026-11-02", "to": "2026-11-01T00:00:00Z"}, "from"),
        ({"from": "2999-01-01"}, "from"),
        ({"format": "xml"}, "format"),
        ({"from": "\x00"}, "from"),
    ],
    ids=str,
)
def test_malformed_periods_are_refused_by_name(query, field):
    answer = api(user_with()).get(URL, query)
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [field]


def test_refusals_are_json_whatever_was_asked_for():
    answer = api(user_with()).get(URL, {"format": "csv", "from": "x"}, headers={"Accept": "text/csv"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/json")
    assert api().get(URL, {"format": "csv"}).status_code == 401


def test_who_accepts_csv_only_gets_it():
    user = user_with("1.00")
    answer = api(user).get(URL, {"format": "csv"}, headers={"Accept": "text/csv"})
    assert answer.status_code == 200
    assert "deposit" in text_of(answer)


@pytest.fixture
def pages_of_three(monkeypatch):
    monkeypatch.setattr(statements, "_PAGE", 3)


@pytest.mark.parametrize("count", [2, 3, 4, 6, 7])
def test_long_statements_are_read_in_pages(pages_of_three, count):
    user = user_with()
    for number in range(count):
        top_up_mock(user=user, amount=Decimal(number + 1))
    statement = get(user)
    assert [row["amount"] for row in statement["rows"]] == [f"{number + 1}.00" for number in range(count)]
    assert_adds_up(statement)
    assert [line[4] for line in get_csv(user)[2:-1]] == [f"{number + 1}.00" for number in range(count)]


def test_what_is_posted_while_it_is_read_is_not_in_it(pages_of_three):
    user = user_with()
    for _ in range(4):
        top_up_mock(user=user, amount=Decimal("1.00"))
    statement = Statement(user, start=clock.now() - timedelta(days=1), end=clock.now() + timedelta(days=1))
    pages = statement.pages()
    first = next(pages)
    top_up_mock(user=user, amount=Decimal("5.00"))
    assert [len(first), *(len(page) for page in pages)] == [3, 1]
    assert statement.closing.balance == Decimal("4.00")


def test_a_page_takes_one_query():
    user = user_with()
    for _ in range(5):
        top_up_mock(user=user, amount=Decimal("1.00"))
    with CaptureQueriesContext(connection) as queries:
        get(user)
    # The account, the last transfer and both sums of each side, the page.
    assert len(queries) == 8


@pytest.mark.django_db(transaction=True)
def test_it_streams_from_the_asynchronous_server_too(pages_of_three):
    user = UserFactory()
    for _ in range(7):
        top_up_mock(user=user, amount=Decimal("1.00"))
    token = access_tokens.issue(Api(user).sign_in(user).session)

    async def read() -> list[bytes]:
        try:
            answer: Any = await AsyncClient().get(URL, {"format": "csv"}, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200
            assert answer.is_async
            return [part async for part in answer.streaming_content]
        finally:
            # Those of the thread in which the view ran.
            await sync_to_async(connections.close_all)()

    parts = asyncio.run(read())
    # Head, three pages, foot: each on its own.
    assert len(parts) == 5
    assert b"".join(parts).count(b"deposit") == 7

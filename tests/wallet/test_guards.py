"""What the database itself refuses, whoever asks."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from tests.database import guard_names
from tests.money import user_with
from wallet.models import Account, Transfer
from wallet.services import open_account, system_account_id

pytestmark = pytest.mark.django_db


def execute(statement: str, *parameters: Any) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def enforce_everything() -> None:
    """Undo, for this transaction, what the test database was told so that it can be flushed."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL pgtrigger.ignore = '{}'")
        # TRUNCATE would be refused for foreign keys still to be checked, before any trigger is asked.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE wallet_transfer SET amount = amount + 1",
        "UPDATE wallet_transfer SET description = 'x'",
        "DELETE FROM wallet_transfer",
        "TRUNCATE wallet_transfer",
        "TRUNCATE wallet_account CASCADE",
    ],
)
def test_transfers_are_append_only(statement):
    user_with("10.00")
    enforce_everything()
    before = list(Transfer.objects.values())
    with pytest.raises(DatabaseError, match="wallet_transfer"):
        execute(statement)
    assert list(Transfer.objects.values()) == before


def test_only_truncate_may_be_ignored_and_only_here():
    """The test database lets itself be flushed; rows are protected in it as everywhere."""
    user_with("10.00")
    assert len(guard_names()) == 1
    with pytest.raises(DatabaseError, match="wallet_transfer"):
        execute("DELETE FROM wallet_transfer")


def test_an_account_with_history_cannot_be_deleted():
    account = open_account(user_with("10.00"))
    with pytest.raises(IntegrityError):
        execute("DELETE FROM wallet_account WHERE id = %s; SET CONSTRAINTS ALL IMMEDIATE", account.pk)


@pytest.mark.parametrize(
    ("column", "value"),
    [("balance", "-0.01"), ("owed", "-0.01"), ("owed", "1.00"), ("balance", "100000000.00")],
)
def test_an_account_holds_only_what_makes_sense(column, value):
    account = open_account(user_with("10.00"))
    with pytest.raises(IntegrityError):
        execute(f"UPDATE wallet_account SET {column} = %s WHERE id = %s", value, account.pk)
    account.refresh_from_db()
    assert (account.balance, account.owed) == (Decimal("10.00"), Decimal("0.00"))


def test_a_system_account_cannot_hold_a_balance_nor_belong_to_a_user():
    revenue = system_account_id("revenue")
    with pytest.raises(IntegrityError):
        execute("UPDATE wallet_account SET balance = 1 WHERE id = %s", revenue)
    with pytest.raises(IntegrityError):
        execute("UPDATE wallet_account SET user_id = %s WHERE id = %s", user_with().pk, revenue)
    with pytest.raises(IntegrityError):
        execute("UPDATE wallet_account SET system = NULL WHERE id = %s", revenue)


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": Decimal("0.00")},
        {"amount": Decimal("-1.00")},
        {"credit_balance_after": Decimal("-0.01")},
        {"credit_owed_after": Decimal("-0.01")},
        {"credit_owed_after": Decimal("1.00")},
        {"credit_owed_after": None},
        {"debit_balance_after": Decimal("-0.01"), "debit_owed_after": Decimal("0.00")},
        {"credit_account_id": system_account_id("revenue")},
        {"kind": "DEPOSIT", "source": "mock:same"},
        {"amount": Decimal("1000000000000.00")},
    ],
    ids=str,
)
def test_a_transfer_holds_only_what_makes_sense(changes):
    account = open_account(user_with())
    row = {
        "debit_account_id": system_account_id("revenue"),
        "credit_account_id": account.pk,
        "amount": Decimal("1.00"),
        "kind": "ADJUSTMENT",
        "source": "test:1",
        "credit_balance_after": Decimal("1.00"),
        "credit_owed_after": Decimal("0.00"),
    }
    Transfer.objects.create(**{**row, "kind": "DEPOSIT", "source": "mock:same"})
    with pytest.raises(DatabaseError), transaction.atomic():
        Transfer.objects.create(**{**row, **changes})
    assert Transfer.objects.count() == 1
    Transfer.objects.create(**row)


def test_a_user_has_one_account():
    user = user_with("1.00")
    with pytest.raises(IntegrityError), transaction.atomic():
        Account.objects.create(user=user)

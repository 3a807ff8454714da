"""The transaction of a flow: repeated on deadlock, once, and not for anything else."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, transaction

from tests.money import user_with
from tests.threads import run_at_once
from wallet.models import Account
from wallet.services import open_account
from zenzefi.lib import transactions
from zenzefi.lib.transactions import ATTEMPTS, in_transaction, is_retriable, run_in_transaction

pytestmark = pytest.mark.django_db(transaction=True)


def lock(account: Account) -> None:
    Account.objects.select_for_update().get(pk=account.pk)


def test_the_victim_of_a_deadlock_is_repeated():
    """Two flows lock two accounts in opposite orders: PostgreSQL ends one, which then runs again and succeeds."""
    accounts = [open_account(user_with("1.00")) for _ in range(2)]
    both_hold_one = threading.Barrier(2, timeout=60)
    runs: list[int] = []

    def flow(number: int) -> str:
        runs.append(number)
        lock(accounts[number])
        if runs.count(number) == 1:
            both_hold_one.wait()
        lock(accounts[1 - number])
        Account.objects.filter(pk=accounts[number].pk).update(owed=Decimal("0.00"))
        return "done"

    assert run_at_once(2, lambda number: run_in_transaction(lambda: flow(number))) == ["done", "done"]
    assert len(runs) == 3


def test_without_repeating_the_victim_fails():
    """Negative control: the same two flows in plain transactions."""
    accounts = [open_account(user_with("1.00")) for _ in range(2)]
    both_hold_one = threading.Barrier(2, timeout=60)

    def flow(number: int) -> str:
        with transaction.atomic():
            lock(accounts[number])
            both_hold_one.wait()
            lock(accounts[1 - number])
        return "done"

    outcomes = run_at_once(2, flow)
    [error] = [outcome for outcome in outcomes if outcome != "done"]
    assert is_retriable(error)


def failing(sqlstate: str, runs: list[int]) -> Any:
    @in_transaction
    def flow() -> None:
        runs.append(1)
        with connection.cursor() as cursor:
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$")

    return flow


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_it_is_not_repeated_for_ever(monkeypatch, sqlstate):
    monkeypatch.setattr(transactions, "BACKOFF", 0.0)
    runs: list[int] = []
    with pytest.raises(OperationalError):
        failing(sqlstate, runs)()
    assert len(runs) == ATTEMPTS


@pytest.mark.parametrize("sqlstate", ["53300", "57014"])
def test_another_failure_is_not_repeated(sqlstate):
    runs: list[int] = []
    with pytest.raises(OperationalError):
        failing(sqlstate, runs)()
    assert len(runs) == 1


def test_inside_a_transaction_repeating_is_left_to_its_owner():
    runs: list[int] = []
    with pytest.raises(OperationalError), transaction.atomic():
        failing("40P01", runs)()
    assert len(runs) == 1


def test_inside_a_transaction_a_refusal_undoes_only_the_flow():
    account = open_account(user_with("1.00"))

    @in_transaction
    def refused() -> None:
        Account.objects.filter(pk=account.pk).update(balance=Decimal("5.00"))
        raise LookupError

    with transaction.atomic():
        Account.objects.filter(pk=account.pk).update(balance=Decimal("2.00"))
        with pytest.raises(LookupError):
            refused()
    account.refresh_from_db()
    assert account.balance == Decimal("2.00")


def test_only_rollbacks_by_the_database_are_retriable():
    assert not is_retriable(ValueError())
    assert not is_retriable(OperationalError())
    assert psycopg.errors.DeadlockDetected.sqlstate in transactions.RETRIABLE
    assert psycopg.errors.SerializationFailure.sqlstate in transactions.RETRIABLE

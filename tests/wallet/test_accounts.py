"""Opening and locking accounts."""

from __future__ import annotations

import threading
from decimal import Decimal

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from accounts.signals import user_registered
from tests.money import user_with
from tests.threads import run_at_once
from wallet.models import Account
from wallet.services import (
    SystemAccount,
    lock_accounts,
    lock_accounts_of,
    open_account,
    system_account,
    system_account_id,
)


@pytest.mark.django_db
def test_registration_opens_an_account():
    user = user_with()
    user_registered.send(sender=type(user), user=user)
    assert Account.objects.get(user=user).balance == 0
    user_registered.send(sender=type(user), user=user)
    assert Account.objects.filter(user=user).count() == 1


@pytest.mark.django_db
def test_a_superuser_made_on_the_command_line_gets_one_when_it_is_needed():
    superuser = get_user_model()._default_manager.create_superuser("root@example.com", "root", "secret-secret")
    assert not Account.objects.filter(user=superuser).exists()
    [account] = lock_accounts_of(superuser)
    assert (account.user, account.balance) == (superuser, Decimal("0.00"))


@pytest.mark.django_db(transaction=True)
def test_callers_that_race_open_one_account():
    user = user_with()

    def open_in_flow(_: int) -> object:
        with transaction.atomic():
            return lock_accounts_of(user)[0].pk

    assert len(set(run_at_once(12, open_in_flow))) == 1
    assert Account.objects.filter(user=user).count() == 1


@pytest.mark.django_db
def test_the_system_accounts_exist_under_derived_ids():
    for name in SystemAccount.values:
        stored = Account.objects.get(system=name)
        assert stored.pk == system_account_id(name)
        assert system_account(name) == stored
        assert str(stored) == name
        assert stored.is_system


@pytest.mark.django_db
def test_accounts_are_locked_in_one_ordered_query_and_returned_as_asked():
    users = [user_with("1.00") for _ in range(4)]
    accounts = [open_account(user) for user in users]
    revenue = system_account(SystemAccount.REVENUE)
    for lock in (
        lambda: lock_accounts(revenue, *reversed(accounts))[1:],
        lambda: lock_accounts_of(*reversed(users)),
    ):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            locked = lock()
        assert locked == list(reversed(accounts))
        assert str(locked[0]) == users[-1].username
        [statement] = [query["sql"] for query in queries if "FOR NO KEY UPDATE" in query["sql"]]
        assert 'ORDER BY "wallet_account"."id" ASC' in statement


@pytest.mark.django_db(transaction=True)
def test_a_locked_account_makes_the_next_flow_wait():
    """The lock is really taken: a query set that nobody evaluates would lock nothing."""
    user = user_with("1.00")
    account = open_account(user)
    waiting = threading.Event()

    def second(_: int) -> Decimal:
        with transaction.atomic():
            waiting.set()
            return lock_accounts(account)[0].balance

    with transaction.atomic():
        [locked] = lock_accounts(account)
        worker = threading.Thread(target=lambda: results.extend(run_at_once(1, second)))
        results: list[Decimal] = []
        worker.start()
        assert waiting.wait(60)
        worker.join(0.3)
        assert worker.is_alive()
        assert results == []
        locked.balance = Decimal("7.00")
        locked.save()
    worker.join(60)
    assert results == [Decimal("7.00")]

"""Opening and locking accounts."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.db.transaction import TransactionManagementError

from wallet.models import Account

_SYSTEM_ACCOUNTS = uuid.UUID("6d0d2c0e-6f0c-5a52-9d0b-6a1f3f0f2b77")


def system_account_id(system: str) -> uuid.UUID:
    """Return the id of a system account: derived from its name, so that postings need not look it up."""
    return uuid.uuid5(_SYSTEM_ACCOUNTS, system)


def system_account(system: str) -> Account:
    """Return a system account without a query: what is posted against it is its id."""
    return Account(id=system_account_id(system), system=system)


def open_account(user: Any) -> Account:
    """Return the user's account, opening it if there is none; callers that race get the same one."""
    account, _created = Account.objects.get_or_create(user=user)
    return account


def lock_accounts(*accounts: Account) -> list[Account]:
    """Lock the accounts for the rest of the transaction and return them as they are now, in the order given.

    One query in the order of the primary key, so that no two flows wait for each other in a circle. System
    accounts are returned as they are: they cache nothing that a lock could protect.

    Raises :class:`~django.db.transaction.TransactionManagementError` outside a transaction.
    """
    present = {account.pk: account for account in accounts if account.is_system}
    wanted = [account.pk for account in accounts if not account.is_system]
    present.update((account.pk, account) for account in _lock(Account.objects.filter(pk__in=wanted)))
    return [present[account.pk] for account in accounts]


def lock_accounts_of(*users: Any) -> list[Account]:
    """Lock the users' accounts in one query and return them in the order given; a missing one is opened first.

    **The order of locks in every flow is: accounts, then access tokens.** A flow that starts from a token reads
    its owner first, locks the account, then the token, and checks that the owner is still the same.

    Raises :class:`~django.db.transaction.TransactionManagementError` outside a transaction.
    """
    accounts = Account.objects.filter(user__in=users)
    by_user = {account.user_id: account for account in _lock(accounts)}
    missing = [user for user in users if user.pk not in by_user]
    if missing:
        for user in missing:
            open_account(user)
        by_user = {account.user_id: account for account in _lock(accounts)}
    return [by_user[user.pk] for user in users]


def _lock(accounts: QuerySet[Account]) -> list[Account]:
    demand_transaction()
    # NO KEY: inserting rows that refer to an account, which takes FOR KEY SHARE, need not wait.
    return list(accounts.order_by("pk").select_for_update(of=("self",), no_key=True))


def demand_transaction() -> None:
    """Refuse to go on outside a transaction: what moves money must be undone with the flow it belongs to."""
    if not connection.in_atomic_block:
        raise TransactionManagementError("Money moves only inside the transaction of its flow.")

"""Posting transfers. Nothing else in the project changes a balance."""

from __future__ import annotations

from decimal import Decimal

from django.db import IntegrityError, transaction

from wallet.exceptions import AlreadyPosted, BalanceLimitExceeded, DebtOutstanding, InsufficientBalance
from wallet.models import Account, Transfer
from wallet.services.accounts import demand_transaction, lock_accounts, system_account
from zenzefi.lib.money import CENT, MAX_AMOUNT, ZERO


def transfer(
    *,
    debit_account: Account,
    credit_account: Account,
    amount: Decimal,
    kind: str,
    source: str,
    description: str = "",
    may_owe: bool = False,
) -> Transfer:
    """Move ``amount`` ZNC from one account to the other, inside the caller's transaction.

    Locks and re-reads both accounts, and leaves the new balances on the objects given. A flow that posts several
    transfers, or reads a balance to decide, locks all of its accounts first with
    :func:`~wallet.services.accounts.lock_accounts`. What the credited account owes is paid first. With ``may_owe``
    the debited account is taken below zero, the missing part becoming ``owed``.

    Raises :class:`InsufficientBalance`, :class:`DebtOutstanding`, :class:`BalanceLimitExceeded`;
    :class:`AlreadyPosted` when this kind was
    posted from this source before; :class:`ValueError` for an amount that is not a positive number of cents; and
    :class:`~django.db.transaction.TransactionManagementError` outside a transaction. Nothing is changed by a
    refusal, and the caller's transaction stays usable.
    """
    demand_transaction()
    if not amount.is_finite() or amount <= 0 or amount != amount.quantize(CENT):
        raise ValueError(f"A transfer is a positive number of cents, not {amount}.")
    payer, payee = lock_accounts(debit_account, credit_account)
    if not payer.is_system:
        if not may_owe and amount > payer.balance:
            raise DebtOutstanding if payer.owed else InsufficientBalance
        _move(payer, -amount)
    if not payee.is_system:
        _move(payee, amount)
        if payee.balance > MAX_AMOUNT:
            raise BalanceLimitExceeded
    try:
        # A savepoint, so that a caller may treat "posted before" as done and go on.
        with transaction.atomic():
            posted = Transfer.objects.create(
                debit_account=payer,
                credit_account=payee,
                amount=amount,
                kind=kind,
                source=source,
                description=description,
                debit_balance_after=None if payer.is_system else payer.balance,
                debit_owed_after=None if payer.is_system else payer.owed,
                credit_balance_after=None if payee.is_system else payee.balance,
                credit_owed_after=None if payee.is_system else payee.owed,
            )
    except IntegrityError as exc:
        diagnostics = getattr(exc.__cause__, "diag", None)
        if getattr(diagnostics, "constraint_name", None) == "wallet_transfer_once":
            raise AlreadyPosted from exc
        raise
    for given, account in ((debit_account, payer), (credit_account, payee)):
        if not account.is_system:
            account.postings += 1
            account.save(update_fields=["balance", "owed", "postings"])
            given.balance, given.owed = account.balance, account.owed
    return posted


def _move(account: Account, amount: Decimal) -> None:
    """Add a signed amount to what the account holds less what it owes, and split the result again."""
    net = account.balance - account.owed + amount
    account.balance = max(net, ZERO)
    account.owed = max(-net, ZERO)


def credit(
    *, account: Account, counterparty: str, amount: Decimal, kind: str, source: str, description: str = ""
) -> Transfer:
    """Post an amount to a user's account from a system account. Raises what :func:`transfer` raises."""
    return transfer(
        debit_account=system_account(counterparty),
        credit_account=account,
        amount=amount,
        kind=kind,
        source=source,
        description=description,
    )


def debit(
    *, account: Account, counterparty: str, amount: Decimal, kind: str, source: str, description: str = ""
) -> Transfer:
    """Take an amount from a user's account to a system account. Raises what :func:`transfer` raises."""
    return transfer(
        debit_account=account,
        credit_account=system_account(counterparty),
        amount=amount,
        kind=kind,
        source=source,
        description=description,
    )


def claw_back(
    *, account: Account, counterparty: str, amount: Decimal, kind: str, source: str, description: str = ""
) -> Transfer:
    """Take back what was credited before; what the account no longer has becomes ``owed``.

    Raises what :func:`transfer` raises, except :class:`InsufficientBalance`.
    """
    return transfer(
        debit_account=account,
        credit_account=system_account(counterparty),
        amount=amount,
        kind=kind,
        source=source,
        description=description,
        may_owe=True,
    )

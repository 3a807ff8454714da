"""Posting transfers: what moves, what is refused, and that a refusal moves nothing."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction
from django.db.transaction import TransactionManagementError

from tests.money import user_with
from wallet.exceptions import AlreadyPosted, BalanceLimitExceeded, InsufficientBalance
from wallet.models import Account, Transfer
from wallet.services import (
    SystemAccount,
    TransferKind,
    claw_back,
    credit,
    debit,
    lock_accounts,
    lock_accounts_of,
    open_account,
    system_account,
    transfer,
)

pytestmark = pytest.mark.django_db

MAX = Decimal("99999999.99")


def account_with(balance: str) -> Account:
    return open_account(user_with(balance))


def pay(account: Account, amount: str, source: str = "test:1", description: str = "") -> Transfer:
    return debit(
        account=account,
        counterparty=SystemAccount.REVENUE,
        amount=Decimal(amount),
        kind=TransferKind.PURCHASE,
        source=source,
        description=description,
    )


def earn(account: Account, amount: str, source: str = "test:1") -> Transfer:
    return credit(
        account=account,
        counterparty=SystemAccount.PROMOTIONS,
        amount=Decimal(amount),
        kind=TransferKind.ADJUSTMENT,
        source=source,
    )


def take_back(account: Account, amount: str, source: str = "test:1") -> Transfer:
    return claw_back(
        account=account,
        counterparty=SystemAccount.PROMOTIONS,
        amount=Decimal(amount),
        kind=TransferKind.CHARGEBACK,
        source=source,
    )


def state() -> tuple[set[tuple[str, Decimal, Decimal]], int]:
    """Return everything a posting could have changed."""
    return {(str(a.pk), a.balance, a.owed) for a in Account.objects.all()}, Transfer.objects.count()


def test_a_debit_is_one_row_with_both_sides():
    account = account_with("100.00")
    posted = pay(account, "18.00", source="token:x", description="24 h")
    posted.refresh_from_db()
    assert (posted.debit_account, posted.credit_account) == (account, system_account(SystemAccount.REVENUE))
    assert (posted.amount, posted.kind, posted.source) == (Decimal("18.00"), "PURCHASE", "token:x")
    assert posted.description == "24 h"
    assert (posted.debit_balance_after, posted.debit_owed_after) == (Decimal("82.00"), Decimal("0.00"))
    assert (posted.credit_balance_after, posted.credit_owed_after) == (None, None)
    assert account.balance == Decimal("82.00")
    account.refresh_from_db()
    assert account.balance == Decimal("82.00")


def test_a_credit_is_one_row_with_both_sides():
    account = account_with("0")
    posted = earn(account, "5.01")
    assert posted.debit_account_id == system_account(SystemAccount.PROMOTIONS).pk
    assert (posted.debit_balance_after, posted.credit_balance_after) == (None, Decimal("5.01"))
    account.refresh_from_db()
    assert account.balance == Decimal("5.01")


def test_a_system_account_caches_nothing():
    pay(account_with("10.00"), "10.00")
    revenue = Account.objects.get(system="revenue")
    assert revenue.balance == revenue.owed == 0


def test_between_two_users():
    payer, payee = account_with("10.00"), account_with("1.00")
    posted = transfer(
        debit_account=payer, credit_account=payee, amount=Decimal("4.00"), kind=TransferKind.ADJUSTMENT, source="test:2"
    )
    assert (posted.debit_balance_after, posted.credit_balance_after) == (Decimal("6.00"), Decimal("5.00"))
    payer.refresh_from_db()
    payee.refresh_from_db()
    assert (payer.balance, payee.balance) == (Decimal("6.00"), Decimal("5.00"))


def test_the_whole_balance_may_be_spent_and_not_a_cent_more():
    account = account_with("18.00")
    pay(account, "18.00", source="test:whole")
    before = state()
    with pytest.raises(InsufficientBalance):
        pay(account, "0.01", source="test:more")
    assert state() == before
    assert account.balance == 0


def test_a_stale_object_does_not_decide():
    """The balance is read under the lock, not from the object the caller holds."""
    account = account_with("18.00")
    stale = Account.objects.get(pk=account.pk)
    pay(account, "18.00")
    assert stale.balance == Decimal("18.00")
    with pytest.raises(InsufficientBalance):
        pay(stale, "18.00", source="test:2")


@pytest.mark.parametrize("amount", ["0", "-1", "-0.01", "0.001", "1.005", "NaN", "sNaN", "Infinity", "-Infinity"])
def test_only_a_positive_number_of_cents_moves(amount):
    account = account_with("10.00")
    before = state()
    with pytest.raises(ValueError, match="positive number of cents"):
        pay(account, amount)
    assert state() == before


def test_a_balance_is_bounded():
    account = account_with("0.00")
    earn(account, str(MAX), source="test:full")
    before = state()
    with pytest.raises(BalanceLimitExceeded):
        earn(account, "0.01", source="test:over")
    assert state() == before


def test_a_source_is_posted_once_per_kind():
    account = account_with("10.00")
    pay(account, "1.00", source="token:1")
    before = state()
    with pytest.raises(AlreadyPosted):
        pay(account, "1.00", source="token:1")
    # The caller's transaction is still usable: "posted before" may be as good as done.
    assert state() == before
    earn(account, "1.00", source="token:1")
    account.refresh_from_db()
    assert account.balance == Decimal("10.00")


def test_another_broken_constraint_is_not_taken_for_a_repetition():
    account = account_with("10.00")
    with pytest.raises(IntegrityError), transaction.atomic():
        transfer(
            debit_account=system_account(SystemAccount.REVENUE),
            credit_account=system_account(SystemAccount.REVENUE),
            amount=Decimal("1.00"),
            kind=TransferKind.ADJUSTMENT,
            source="test:self",
        )
    account.refresh_from_db()
    assert account.balance == Decimal("10.00")


def test_what_cannot_be_taken_back_is_owed_and_paid_by_later_credits():
    account = account_with("1000.00")
    pay(account, "950.00", source="token:1")
    disputed = take_back(account, "1000.00", source="payment:1")
    assert (disputed.debit_balance_after, disputed.debit_owed_after) == (Decimal("0.00"), Decimal("950.00"))
    account.refresh_from_db()
    assert (account.balance, account.owed) == (Decimal("0.00"), Decimal("950.00"))

    with pytest.raises(InsufficientBalance):
        pay(account, "0.01", source="token:2")

    part = earn(account, "100.00", source="test:part")
    assert (part.credit_balance_after, part.credit_owed_after) == (Decimal("0.00"), Decimal("850.00"))
    won = earn(account, "900.00", source="payment:1:won")
    assert (won.credit_balance_after, won.credit_owed_after) == (Decimal("50.00"), Decimal("0.00"))
    account.refresh_from_db()
    assert (account.balance, account.owed) == (Decimal("50.00"), Decimal("0.00"))


def test_what_is_there_is_taken_back_without_a_debt():
    account = account_with("10.00")
    take_back(account, "10.00")
    account.refresh_from_db()
    assert account.balance == account.owed == 0


@pytest.mark.django_db(transaction=True)
def test_money_moves_only_inside_a_transaction():
    account = account_with("10.00")
    before = state()
    for refused in (
        lambda: pay(account, "1.00"),
        lambda: earn(account, "1.00"),
        lambda: take_back(account, "1.00"),
        lambda: lock_accounts(account),
        lambda: lock_accounts_of(account.user),
    ):
        with pytest.raises(TransactionManagementError):
            refused()
    assert state() == before


@pytest.mark.django_db(transaction=True)
def test_a_flow_that_fails_later_undoes_its_postings():
    account = account_with("10.00")
    before = state()
    with pytest.raises(RuntimeError), transaction.atomic():
        pay(account, "1.00")
        raise RuntimeError
    assert state() == before

"""However many workers renew at once, one successor is bought and one month is paid."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError

from tests.money import activate_so_that, leave, renewing_token, user_with
from tests.threads import run_at_once
from tokens import tasks
from tokens.exceptions import TokenAlreadyRevoked, TokenJustRenewed
from tokens.models import AccessToken, TierSubscription
from tokens.services import (
    Revocation,
    choose_tier,
    claim_due_renewals,
    purchase_token,
    renew_subscription,
    renew_token,
    renewal,
    revoke_token,
    rotate_token,
    set_auto_renew,
    set_renewal_terms,
    take_over_due,
)
from wallet.exceptions import AlreadyPosted
from wallet.models import Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from wallet.services import accounts
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db(transaction=True)

WORKERS = 20
HOUR = 3600


def drifts() -> list[str]:
    return [outcome.name for outcome in reconcile() if outcome.drifts]


def end_of_month_of(user: Any) -> TierSubscription:
    """Move the user's paid month so that it has just ended."""
    choose_tier(user=user, tier="premium")
    subscription = TierSubscription.objects.get(user=user)
    now = clock.now()
    TierSubscription.objects.filter(pk=subscription.pk).update(
        started_at=now - timedelta(days=31), period_start=now - timedelta(days=31), period_end=now, due_at=now
    )
    return subscription


@pytest.mark.slow
def test_twenty_workers_buy_one_successor_in_each_of_twenty_rounds():
    bought = renewing_token(seconds_left=HOUR, balance="400.00")
    owner = bought.token.owner
    for number in range(20):
        token = AccessToken.objects.get(pk=bought.token.pk)
        outcomes = run_at_once(WORKERS, lambda _: renew_token(token_id=bought.token.id))
        assert Counter(type(outcome) for outcome in outcomes) == {AccessToken: 1, type(None): WORKERS - 1}
        assert balance_of(owner).balance == Decimal("400.00") - 18 * (number + 1)
        # The round's successor is the next round's token.
        successor = AccessToken.objects.get(predecessor=token)
        now = clock.now()
        AccessToken.objects.filter(pk=successor.pk).update(
            activated_at=now - timedelta(hours=23), expires_at=now + timedelta(hours=1), renew_at=now
        )
        AccessToken.objects.filter(pk=token.pk).update(expires_at=now - timedelta(hours=23))
        bought.token.id = successor.pk
        bought.token.refresh_from_db()
    assert Transfer.objects.filter(kind="PURCHASE").count() == 21
    assert drifts() == []


def test_the_task_run_by_many_at_once_buys_each_once():
    owner = user_with("1000.00")
    for _ in range(6):
        token = purchase_token(owner=owner, duration_hours=24).token
        set_auto_renew(token_id=token.id, owner=owner, enabled=True)
        activate_so_that(token, seconds_left=HOUR)
    counts = run_at_once(6, lambda _: tasks.renew_tokens())
    assert sum(counts) == 6
    assert AccessToken.objects.filter(predecessor__isnull=False).count() == 6


def test_workers_at_once_claim_different_rows():
    tokens = {renewing_token(seconds_left=HOUR).token.id for _ in range(8)}
    claimed = [one for ids in run_at_once(4, lambda _: claim_due_renewals(limit=2)) for one in ids]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= tokens


def test_without_the_locks_more_than_one_worker_buys(monkeypatch):
    """Negative control. What keeps the second successor out then is the database, by an error."""
    token = renewing_token(seconds_left=HOUR).token
    together = threading.Barrier(2, timeout=60)

    def read_token(token_id: Any, **_: Any) -> AccessToken:
        found = AccessToken.objects.get(pk=token_id)
        together.wait()
        return found

    monkeypatch.setattr(accounts, "_lock", lambda queryset: list(queryset.order_by("pk")))
    monkeypatch.setattr(renewal, "lock_token", read_token)
    outcomes = run_at_once(2, lambda _: renew_token(token_id=token.id))
    assert Counter(type(outcome) for outcome in outcomes) == {AccessToken: 1, IntegrityError: 1}
    assert AccessToken.objects.count() == 2


def test_the_daily_cap_holds_for_all_tokens_at_once():
    owner = user_with("1000.00")
    tokens = []
    for _ in range(8):
        token = purchase_token(owner=owner, duration_hours=24).token
        set_auto_renew(token_id=token.id, owner=owner, enabled=True)
        activate_so_that(token, seconds_left=HOUR)
        tokens.append(token)
    set_renewal_terms(user=owner, enabled=False, duration_hours=None, scope=None, daily_cap=Decimal("54.00"))
    before = balance_of(owner).balance
    outcomes = run_at_once(8, lambda number: renew_token(token_id=tokens[number].id))
    assert sum(outcome is not None for outcome in outcomes) == 3
    assert before - balance_of(owner).balance == Decimal("54.00")
    assert AccessToken.objects.filter(renewal_paused="daily_cap_reached").count() == 5


@pytest.mark.parametrize("attempt", range(5))
def test_renewal_against_revocation(attempt):
    """Whichever comes first: nothing stays paid for and unusable."""
    token = renewing_token(seconds_left=HOUR, balance="18.00").token

    def act(number: int) -> Any:
        if number % 2:
            return renew_token(token_id=token.id)
        return revoke_token(token_id=token.id, actor=None, refund=True)

    outcomes = run_at_once(8, act)
    kinds = {type(outcome) for outcome in outcomes}
    assert kinds <= {AccessToken, type(None), Revocation, TokenAlreadyRevoked, TokenJustRenewed}
    if Revocation not in kinds:
        revoke_token(token_id=token.id, actor=None, refund=True)
    token.refresh_from_db()
    assert balance_of(token.owner).balance == Decimal("18.00") + token.refunded
    assert not AccessToken.objects.filter(revoked_at__isnull=True).exists()
    assert drifts() == []


@pytest.mark.parametrize("attempt", range(3))
def test_taking_over_against_a_new_secret(attempt):
    bought = renewing_token(seconds_left=HOUR)
    renew_token(token_id=bought.token.id)
    successor = AccessToken.objects.get(predecessor=bought.token)
    now = clock.now()
    AccessToken.objects.filter(pk=bought.token.pk).update(expires_at=now)
    AccessToken.objects.filter(pk=successor.pk).update(activated_at=now)

    def act(number: int) -> Any:
        if number:
            return take_over_due()
        return rotate_token(token_id=successor.id, owner=successor.owner).token.digest

    digest, *_ = run_at_once(4, act)
    successor.refresh_from_db()
    assert successor.digest == digest
    assert successor.taken_over_at is not None


@pytest.mark.slow
def test_twenty_workers_pay_one_month_in_each_of_twenty_rounds():
    user = user_with("210.00")
    subscription = end_of_month_of(user)
    for number in range(20):
        outcomes = run_at_once(WORKERS, lambda _: renew_subscription(subscription_id=subscription.id))
        assert Counter(outcomes) == {True: 1, False: WORKERS - 1}
        assert balance_of(user).balance == Decimal("200.00") - 10 * (number + 1)
        now = clock.now()
        TierSubscription.objects.update(
            started_at=now - timedelta(days=31) * (number + 2),
            period_start=now - timedelta(days=31),
            period_end=now,
            due_at=now,
        )
    assert Transfer.objects.filter(kind="SUBSCRIPTION").count() == 21
    assert drifts() == []


def test_without_the_locks_more_than_one_worker_pays_a_month(monkeypatch):
    """Negative control. What keeps the second payment out then is the ledger, by an error."""
    from tokens.services import tiers

    subscription = end_of_month_of(user_with("100.00"))
    together = threading.Barrier(2, timeout=60)

    def read_current(user: Any) -> Any:
        found = TierSubscription.objects.current().select_related("tier").get(user=user)
        together.wait()
        return found

    monkeypatch.setattr(accounts, "_lock", lambda queryset: list(queryset.order_by("pk")))
    monkeypatch.setattr(tiers, "_lock_current", read_current)
    outcomes = run_at_once(2, lambda _: renew_subscription(subscription_id=subscription.id))
    assert {type(outcome) for outcome in outcomes} == {bool, AlreadyPosted}


def test_of_many_who_choose_at_once_one_pays():
    user = user_with("100.00")
    outcomes = run_at_once(8, lambda _: choose_tier(user=user, tier="premium"))
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert balance_of(user).balance == Decimal("90.00")
    leave(user, "0.00")
    assert TierSubscription.objects.count() == 1

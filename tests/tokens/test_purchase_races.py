"""Fifty threads buy an 18.00 token with 18.00 on the account."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from tests.money import api, user_with
from tests.threads import Meeting, run_at_once
from tokens.models import AccessToken
from tokens.services import PurchasedToken, purchase_token
from wallet.exceptions import InsufficientBalance
from wallet.models import Account, Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from wallet.services import accounts

pytestmark = pytest.mark.django_db(transaction=True)

BUYERS = 50


def buy_at_once(user: Any) -> list[Any]:
    return run_at_once(BUYERS, lambda _: purchase_token(owner=user, duration_hours=24))


def assert_sold_once(user: Any) -> None:
    assert balance_of(user).balance == Decimal("0.00")
    assert AccessToken.objects.filter(owner=user).count() == 1
    assert Transfer.objects.filter(kind="PURCHASE").count() == 1


def test_one_is_sold_and_the_others_are_told_that_the_balance_is_short():
    user = user_with("18.00")
    outcomes = Counter(type(outcome) for outcome in buy_at_once(user))
    assert outcomes == {PurchasedToken: 1, InsufficientBalance: BUYERS - 1}
    assert_sold_once(user)


@pytest.mark.slow
def test_twenty_at_once_with_money_for_three_buy_three():
    for _ in range(20):
        user = user_with("60.00")
        outcomes = run_at_once(20, partial(lambda user, _: purchase_token(owner=user, duration_hours=24), user))
        assert Counter(map(type, outcomes)) == {PurchasedToken: 3, InsufficientBalance: 17}
        assert balance_of(user).balance == Decimal("6.00")
        assert AccessToken.objects.filter(owner=user).count() == 3
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


def test_one_is_sold_over_http():
    user = user_with("18.00")

    def buy(_: int) -> tuple[int, str]:
        answer = api(user).post("/api/v1/tokens/purchase", {"duration_hours": 24}, format="json")
        return answer.status_code, answer.json().get("code", "")

    assert Counter(run_at_once(BUYERS, buy)) == {(201, ""): 1, (402, "insufficient_balance"): BUYERS - 1}
    assert_sold_once(user)


def test_without_the_lock_more_than_one_is_sold(monkeypatch):
    """Negative control: what the tests above prove is the lock's doing."""

    two = Meeting(2)

    def read_without_locking(queryset: Any) -> list[Account]:
        rows = list(queryset.order_by("pk"))
        two.wait()
        return rows

    user = user_with("18.00")
    monkeypatch.setattr(accounts, "_lock", read_without_locking)
    outcomes = Counter(type(outcome) for outcome in buy_at_once(user))
    assert outcomes[PurchasedToken] > 1
    assert Transfer.objects.filter(kind="PURCHASE").count() == outcomes[PurchasedToken]
    with pytest.raises(AssertionError):
        assert_sold_once(user)


def test_many_buyers_with_enough_money_all_get_one():
    user = user_with("360.00")
    outcomes = run_at_once(20, lambda _: purchase_token(owner=user, duration_hours=24))
    assert {type(outcome) for outcome in outcomes} == {PurchasedToken}
    assert balance_of(user).balance == Decimal("0.00")
    assert sorted(outcome.balance for outcome in outcomes) == [Decimal(18 * n) for n in range(20)]

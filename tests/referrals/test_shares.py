"""Arithmetic of shares, for any amounts: prices split over tokens, bonuses taken back with their refunds."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bundles.services import split_price
from referrals.models import BONUS_RATE, ReferralBonus
from zenzefi.lib.money import CENT, ZERO, floor_cents

cents = st.integers(min_value=10_001, max_value=9_999_999_999).map(lambda amount: Decimal(amount).scaleb(-2))


@given(total=cents, count=st.integers(min_value=1, max_value=500))
def test_shares_add_up_and_differ_by_a_cent_at_most(total, count):
    shares = split_price(total, count)
    assert (len(shares), sum(shares)) == (count, total)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= CENT
    assert shares[-1] > 0


@given(data=st.data(), paid=cents, count=st.integers(min_value=1, max_value=20))
def test_refunds_in_any_parts_never_take_back_more_than_the_bonus_and_all_of_them_exactly_it(data: Any, paid, count):
    bonus = ReferralBonus(purchase_paid=paid, amount=floor_cents(paid * BONUS_RATE))
    taken = ZERO
    shares = split_price(paid, count)
    # Each token pays back some part of its share, in any order.
    for share in data.draw(st.permutations(shares)):
        bonus.refunded += data.draw(st.integers(0, int(share.scaleb(2))).map(lambda part: Decimal(part).scaleb(-2)))
        excess = bonus.amount - taken - bonus.due
        assert excess >= 0
        taken += excess
        # Within a cent of the exact share, and never above it.
        exact = bonus.amount * bonus.refunded / bonus.purchase_paid
        assert exact - CENT < taken <= exact
    bonus.refunded = paid
    assert bonus.due == ZERO

"""How much a revoked token pays back."""

from __future__ import annotations

from datetime import timedelta
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokens.models import AccessToken
from tokens.services import refund_due, refund_for
from zenzefi.lib import clock

CENTS = st.decimals(Decimal("0.01"), Decimal("99999999.99"), places=2)


@pytest.mark.parametrize(
    ("hours", "paid", "unused_seconds", "refund"),
    [
        (24, "18.00", 43_224, "9.00"),
        (24, "18.00", 43_272, "9.01"),
        (720, "300.00", 1_699_200, "196.66"),
        (168, "100.00", 168 * 3600 - 1, "99.99"),
        (24, "18.00", 86_400, "18.00"),
        (24, "18.00", 0, "0.00"),
        (24, "18.00", 1, "0.00"),
        (24, "18.00", 47, "0.00"),
        (24, "18.00", 48, "0.01"),
        (1, "1.00", 3_599, "0.99"),
        (168, "80.00", 168 * 3600, "80.00"),
    ],
)
def test_worked_examples(hours, paid, unused_seconds, refund):
    assert refund_for(Decimal(paid), unused_seconds=unused_seconds, total_seconds=hours * 3600) == Decimal(refund)


@given(paid=CENTS, hours=st.integers(1, 10_000), data=st.data())
def test_the_refund_is_the_exact_share_cut_to_the_cent(paid, hours, data):
    total = hours * 3600
    unused = data.draw(st.integers(0, total))
    refund = refund_for(paid, unused_seconds=unused, total_seconds=total)
    exact = Fraction(paid) * unused / total
    assert 0 <= exact - Fraction(refund) < Fraction(1, 100)
    assert refund == refund.quantize(Decimal("0.01"), rounding=ROUND_DOWN)
    assert 0 <= refund <= paid


@given(paid=CENTS, hours=st.integers(1, 10_000), data=st.data())
def test_waiting_never_pays(paid, hours, data):
    total = hours * 3600
    later = data.draw(st.integers(0, total))
    earlier = data.draw(st.integers(later, total))
    assert refund_for(paid, unused_seconds=later, total_seconds=total) <= refund_for(
        paid, unused_seconds=earlier, total_seconds=total
    )


@pytest.mark.parametrize(("unused", "refund"), [(-1, "0.00"), (-(10**9), "0.00"), (3_601, "1.00"), (10**9, "1.00")])
def test_never_below_nothing_nor_above_what_was_paid(unused, refund):
    assert refund_for(Decimal("1.00"), unused_seconds=unused, total_seconds=3600) == Decimal(refund)


def token(**values: object) -> AccessToken:
    return AccessToken(**{"duration_hours": 24, "paid": Decimal("18.00"), "list_price": Decimal("99.00"), **values})


def test_before_activation_all_that_was_paid():
    assert refund_due(token(), clock.now()) == Decimal("18.00")


def test_what_was_refunded_before_is_not_refunded_again():
    now = clock.now()
    assert refund_due(token(refunded=Decimal("10.00")), now) == Decimal("8.00")
    half = {"activated_at": now - timedelta(hours=12), "expires_at": now + timedelta(hours=12)}
    assert refund_due(token(**half), now) == Decimal("9.00")
    assert refund_due(token(refunded=Decimal("8.50"), **half), now) == Decimal("0.50")
    assert refund_due(token(refunded=Decimal("10.00"), **half), now) == Decimal("0.00")


def test_parts_of_a_second_count_as_used():
    now = clock.now()
    expires_at = now + timedelta(seconds=48)
    just_used = token(activated_at=expires_at - timedelta(hours=24), expires_at=expires_at)
    assert refund_due(just_used, now) == Decimal("0.01")
    assert refund_due(just_used, now + timedelta(microseconds=1)) == Decimal("0.00")

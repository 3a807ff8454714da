"""Gifts under parallel callers: one outcome each, whoever comes first."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import QuerySet

from tests.money import user_with
from tests.threads import Meeting, run_at_once
from tests.tokens.gifts import offered
from tokens import secrets
from tokens.exceptions import (
    GiftAlreadyClaimed,
    GiftCancelled,
    GiftExpired,
    GiftLimitReached,
    TokenActivated,
    TokenHeld,
    TokenNotUsable,
)
from tokens.models import AccessToken, Gift
from tokens.selectors import credential_by_digest
from tokens.services import (
    Activation,
    ClaimedGift,
    OfferedGift,
    activate_token,
    approve_gift,
    cancel_gift,
    claim_gift,
    gifts,
    offer_gift,
    purchase_token,
    reject_gift,
    return_expired_gifts,
    revoke_token,
)
from wallet.services import accounts
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db(transaction=True)

CALLERS = 20
ROUNDS = 20
#: Of races in which two kinds of callers meet.
ROUNDS_OF_TWO = 10


@pytest.fixture
def giver() -> Any:
    return user_with("10000.00")


@pytest.fixture
def many(settings: Any) -> None:
    """More gifts than anybody makes in a day."""
    settings.GIFTS_PER_DAY = 1000


def kinds(outcomes: list[Any]) -> dict[type, int]:
    return dict(Counter(type(outcome) for outcome in outcomes))


def assert_claimed_once(gift: OfferedGift, outcomes: list[Any]) -> None:
    assert kinds(outcomes) == {ClaimedGift: 1, GiftAlreadyClaimed: CALLERS - 1}
    [won] = [outcome for outcome in outcomes if isinstance(outcome, ClaimedGift)]
    stored = Gift.objects.get(pk=gift.gift.pk)
    token = AccessToken.objects.get(pk=stored.token_id)
    assert stored.claimed_by == token.owner == won.token.owner
    known = credential_by_digest(secrets.digest(won.secret))
    assert known is not None and known.token_id == token.pk


def claim_at_once(gift: OfferedGift, friends: list[Any]) -> list[Any]:
    return run_at_once(len(friends), lambda number: claim_gift(code=gift.code, claimer=friends[number]))


def test_of_twenty_claims_at_once_one_wins(giver, many):
    friends = [user_with() for _ in range(CALLERS)]
    for _ in range(ROUNDS):
        gift = offered(giver)
        assert_claimed_once(gift, claim_at_once(gift, friends))


def test_without_the_lock_more_than_one_wins(giver, monkeypatch):
    """Negative control: what the test above proves is the doing of the lock on the gift."""

    two = Meeting(2)

    def read_without_locking(found: QuerySet[Gift]) -> Gift | None:
        gift = found.first()
        two.wait()
        return gift

    monkeypatch.setattr(gifts, "_locked", read_without_locking)
    friends = [user_with() for _ in range(CALLERS)]
    gift = offered(giver)
    outcomes = claim_at_once(gift, friends)
    assert kinds(outcomes).get(ClaimedGift, 0) > 1
    with pytest.raises(AssertionError):
        assert_claimed_once(gift, outcomes)


def test_claim_against_cancellation(giver, many):
    friends = [user_with() for _ in range(4)]
    for _ in range(ROUNDS_OF_TWO):
        gift = offered(giver)

        def act(number: int, gift: OfferedGift = gift) -> Any:
            if number % 2:
                return claim_gift(code=gift.code, claimer=friends[number // 2])
            return cancel_gift(gift_id=gift.gift.pk, giver=giver)

        outcomes = kinds(run_at_once(8, act))
        token = AccessToken.objects.get(pk=gift.gift.token_id)
        assert token.held_at is None
        if Gift in outcomes:
            assert outcomes == {Gift: 1, GiftCancelled: 7}
            assert (token.owner, token.digest) == (giver, gift.gift.token.digest)
        else:
            assert outcomes == {ClaimedGift: 1, GiftAlreadyClaimed: 7}
            assert token.owner != giver


def test_claim_against_expiry(giver, many):
    friends = [user_with() for _ in range(4)]
    seen = set()
    for attempt in range(ROUNDS_OF_TWO):
        gift = offered(giver)
        # The end falls somewhere into the race.
        Gift.objects.filter(pk=gift.gift.pk).update(expires_at=clock.now() + timedelta(milliseconds=2 * attempt))

        def act(number: int, gift: OfferedGift = gift) -> Any:
            if number % 2:
                return claim_gift(code=gift.code, claimer=friends[number // 2])
            return return_expired_gifts()

        outcomes = run_at_once(8, act)
        returned = sum(outcome for outcome in outcomes if isinstance(outcome, int))
        claimed = kinds(outcomes).get(ClaimedGift, 0)
        assert set(kinds(outcomes)) <= {int, ClaimedGift, GiftAlreadyClaimed, GiftExpired}
        if not claimed:
            returned += return_expired_gifts()
        assert claimed + returned == 1
        token = AccessToken.objects.get(pk=gift.gift.token_id)
        assert token.held_at is None
        assert (token.owner != giver) == bool(claimed)
        seen.add(claimed)
    assert seen


def test_expiry_at_once_hands_each_token_back_once(giver, many):
    for _ in range(10):
        offered(giver)
    Gift.objects.update(expires_at=clock.now())
    assert sum(run_at_once(8, lambda _: return_expired_gifts(limit=3))) + return_expired_gifts() == 10
    assert not AccessToken.objects.filter(held_at__isnull=False).exists()


def test_offers_of_one_token_at_once_make_one_gift(giver):
    token = purchase_token(owner=giver, duration_hours=24).token
    outcomes = run_at_once(CALLERS, lambda _: offer_gift(token_id=token.pk, giver=giver))
    assert kinds(outcomes) == {OfferedGift: 1, TokenHeld: CALLERS - 1}
    assert Gift.objects.count() == 1


def fill_the_day(giver: Any) -> list[AccessToken]:
    """Leave room for one more gift of today, and tokens to try it with."""
    for _ in range(9):
        offered(giver)
    return [purchase_token(owner=giver, duration_hours=1).token for _ in range(8)]


def test_gifts_at_once_do_not_go_over_the_days_limit(giver):
    tokens = fill_the_day(giver)
    outcomes = run_at_once(8, lambda n: offer_gift(token_id=tokens[n].pk, giver=giver))
    assert kinds(outcomes) == {OfferedGift: 1, GiftLimitReached: 7}
    assert Gift.objects.count() == 10


def test_without_the_lock_they_do(giver, monkeypatch):
    """Negative control: the giver's account is what they wait at."""

    def read_without_locking(queryset: Any) -> list[Any]:
        return list(queryset.order_by("pk"))

    two = Meeting(2)

    def look_and_wait(user: Any, now: Any) -> None:
        demand(user, now)
        two.wait()

    demand = gifts._demand_allowance
    tokens = fill_the_day(giver)
    monkeypatch.setattr(accounts, "_lock", read_without_locking)
    monkeypatch.setattr(gifts, "_demand_allowance", look_and_wait)
    outcomes = run_at_once(8, lambda n: offer_gift(token_id=tokens[n].pk, giver=giver))
    assert kinds(outcomes)[OfferedGift] > 1


def test_gift_against_first_use(giver, many):
    """Either the token was used, and is not given away, or it was given away, and is not used."""
    for _ in range(ROUNDS_OF_TWO):
        token = purchase_token(owner=giver, duration_hours=24).token

        def act(number: int, token: AccessToken = token) -> Any:
            if number % 2:
                return activate_token(token_id=token.pk, at=clock.now(), owner_id=giver.pk)
            return offer_gift(token_id=token.pk, giver=giver)

        outcomes = kinds(run_at_once(8, act))
        token.refresh_from_db()
        if OfferedGift in outcomes:
            assert outcomes == {OfferedGift: 1, TokenHeld: 3, TokenNotUsable: 4}
            assert token.activated_at is None and token.held_at is not None
        else:
            assert outcomes == {Activation: 4, TokenActivated: 4}
            assert token.activated_at is not None and token.held_at is None


def test_reading_first_and_writing_then_gives_a_used_token_away(giver):
    """Negative control: without the compare-and-set an activation goes over the gift."""
    token = purchase_token(owner=giver, duration_hours=24).token

    read, offered_meanwhile = threading.Event(), threading.Event()

    def read_then_write() -> None:
        row = AccessToken.objects.get(pk=token.pk)
        read.set()
        assert offered_meanwhile.wait(60)
        row.activated_at, row.expires_at = clock.now(), clock.now() + row.duration
        row.save()

    def act(number: int) -> Any:
        if number:
            return read_then_write()
        assert read.wait(60)
        try:
            return offer_gift(token_id=token.pk, giver=giver)
        finally:
            offered_meanwhile.set()

    offer, _ = run_at_once(2, act)
    assert isinstance(offer, OfferedGift)
    token.refresh_from_db()
    assert token.activated_at is not None
    assert token.held_at is None, "the gift is open and its token is not held"


def test_gift_against_revocation(giver, many):
    for _ in range(ROUNDS_OF_TWO):
        token = purchase_token(owner=giver, duration_hours=1).token

        def act(number: int, token: AccessToken = token) -> Any:
            if number % 2:
                return revoke_token(token_id=token.pk, actor=giver, owner=giver, refund=True)
            return offer_gift(token_id=token.pk, giver=giver)

        run_at_once(4, act)
        token.refresh_from_db()
        assert (token.revoked_at is None) == (token.held_at is not None)
        assert Gift.objects.filter(token=token).exists() == (token.held_at is not None)


def test_approval_against_rejection(giver, many):
    staff = user_with()
    for _ in range(5):
        gift = offered(giver, duration_hours=168).gift

        def act(number: int, gift: Gift = gift) -> Any:
            decide = approve_gift if number % 2 else reject_gift
            return decide(gift_id=gift.pk, actor=staff, reason="r")

        run_at_once(4, act)
        # Rejecting also takes back what was approved, so whatever came first, that is the end.
        gift.refresh_from_db()
        assert gift.status == Gift.Status.REJECTED
        assert AccessToken.objects.get(pk=gift.token_id).held_at is None

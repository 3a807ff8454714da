"""Bonuses that look like people referring themselves are held, and staff decide."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps

from accounts.models import SignInSession
from referrals.exceptions import BonusNotFound, BonusNotHeld, NothingLeftToPay, ReferrerDisabled
from referrals.models import ReferralBonus
from referrals.services import approve_bonus, reject_bonus
from tests.money import staff_client, user_with
from tests.threads import run_at_once
from tokens.models import AccessToken
from tokens.services import purchase_token, revoke_token
from wallet.models import Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


def referred(balance: str = "1000.00", **extra: Any) -> tuple[Any, Any]:
    referrer = user_with("100.00", **extra)
    return referrer, user_with(balance, referred_by=referrer)


def signed_in_from(user: Any, address: str, *, days_ago: float = 0) -> None:
    now = clock.now()
    SignInSession.objects.create(
        user=user,
        address=address,
        last_used_at=now - timedelta(days=days_ago),
        expires_at=now + timedelta(days=1),
    )


def used_device(user: Any, device_id: str, *, days_ago: float = 0) -> None:
    token = purchase_token(owner=user, duration_hours=1).token
    AccessToken.objects.filter(pk=token.pk).update(
        device_id=device_id, device_seen_at=clock.now() - timedelta(days=days_ago)
    )


def buy(user: Any) -> AccessToken:
    return purchase_token(owner=user, duration_hours=720).token


def held(balance: str = "1000.00") -> tuple[Any, Any, AccessToken, ReferralBonus]:
    """Return referrer, buyer, token and a bonus that is held."""
    referrer, buyer = referred(balance)
    for user in (referrer, buyer):
        signed_in_from(user, "192.0.2.7")
    token = buy(buyer)
    return referrer, buyer, token, ReferralBonus.objects.get(referee=buyer)


def balance(user: Any) -> Decimal:
    return balance_of(user).balance


def assert_held(referrer: Any, *suspicions: str) -> ReferralBonus:
    bonus = ReferralBonus.objects.get(referrer=referrer)
    assert (bonus.status, bonus.suspicions, bonus.paid_out) == ("held", list(suspicions), Decimal("0.00"))
    assert not Transfer.objects.filter(kind="REFERRAL_BONUS").exists()
    outbox = apps.get_model("notifications.OutboxEvent").objects
    assert not outbox.filter(event="referral.bonus").exists()
    [event] = outbox.filter(event="referral.bonus_held")
    assert event.user is None
    return bonus


@pytest.mark.parametrize(
    ("theirs", "mine", "is_held"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
    ],
)
def test_the_same_address_holds_the_bonus(theirs, mine, is_held):
    referrer, buyer = referred()
    signed_in_from(referrer, theirs)
    signed_in_from(referrer, "198.51.100.1")
    signed_in_from(buyer, mine)
    buy(buyer)
    assert balance(buyer) == Decimal("700.00")
    if is_held:
        assert_held(referrer, "same_address")
        assert balance(referrer) == Decimal("100.00")
    else:
        assert balance(referrer) == Decimal("130.00")


@pytest.mark.parametrize(("days_ago", "is_held"), [(29.9, True), (30.1, False)])
def test_an_address_counts_within_the_window(days_ago, is_held):
    referrer, buyer = referred()
    signed_in_from(referrer, "192.0.2.7", days_ago=days_ago)
    signed_in_from(buyer, "192.0.2.7")
    buy(buyer)
    assert ReferralBonus.objects.get().status == ("held" if is_held else "paid")


@pytest.mark.parametrize(("days_ago", "is_held"), [(1, True), (31, False)])
def test_where_they_registered_counts_too(days_ago, is_held):
    referrer, buyer = referred(registered_from="192.0.2.7")
    type(referrer).objects.filter(pk=referrer.pk).update(created_at=clock.now() - timedelta(days=days_ago))
    signed_in_from(buyer, "192.0.2.7")
    buy(buyer)
    assert ReferralBonus.objects.get().status == ("held" if is_held else "paid")


def test_the_window_is_a_setting(settings):
    settings.REFERRAL_FRAUD_WINDOW_DAYS = 7
    referrer, buyer = referred()
    signed_in_from(referrer, "192.0.2.7", days_ago=8)
    signed_in_from(buyer, "192.0.2.7")
    buy(buyer)
    assert ReferralBonus.objects.get().status == "paid"


@pytest.mark.parametrize(
    ("device", "days_ago", "is_held"), [("laptop-1", 0, True), ("laptop-2", 0, False), ("laptop-1", 31, False)]
)
def test_the_same_device_holds_the_bonus(device, days_ago, is_held):
    referrer, buyer = referred()
    used_device(referrer, "laptop-1", days_ago=days_ago)
    used_device(buyer, device)
    buy(buyer)
    if is_held:
        assert_held(referrer, "same_device")
    else:
        assert ReferralBonus.objects.get().status == "paid"


def test_tokens_that_no_device_used_are_not_the_same_device():
    referrer, buyer = referred()
    for user in (referrer, buyer):
        used_device(user, "")
    buy(buyer)
    assert ReferralBonus.objects.get().status == "paid"


@pytest.mark.parametrize(
    ("days_ago", "device", "address", "suspicions"),
    [
        (0, "laptop-1", "198.51.100.9", ["same_device"]),
        (0, "laptop-2", "192.0.2.7", ["same_address"]),
        (29.9, "laptop-1", "192.0.2.7", ["same_address", "same_device"]),
        (30.1, "laptop-1", "192.0.2.7", []),
        (0, "laptop-2", None, []),
    ],
)
def test_what_the_gateway_saw_counts_long_after_the_token_went_to_another_device(days_ago, device, address, suspicions):
    referrer, buyer = referred()
    for user, used, from_, ago in ((referrer, device, address, days_ago), (buyer, "laptop-1", "192.0.2.7", 0)):
        moment = clock.now() - timedelta(days=ago)
        apps.get_model("proxy.Session").objects.create(
            user=user,
            token=purchase_token(owner=user, duration_hours=1).token,
            device_id=used,
            client_address=from_,
            started_at=moment,
            last_activity_at=moment,
        )
    buy(buyer)
    if suspicions:
        assert_held(referrer, *suspicions)
    else:
        assert ReferralBonus.objects.get().status == "paid"


def test_a_disabled_referrer_is_not_paid_but_reviewed():
    referrer, buyer = referred(is_active=False)
    buy(buyer)
    bonus = assert_held(referrer, "referrer_disabled")
    with pytest.raises(ReferrerDisabled):
        approve_bonus(bonus_id=bonus.id, actor=user_with(is_staff=True), reason="asked for")
    assert_held(referrer, "referrer_disabled")
    referrer.is_active = True
    referrer.save(update_fields=["is_active"])
    approve_bonus(bonus_id=bonus.id, actor=user_with(is_staff=True), reason="enabled again")
    assert balance(referrer) == Decimal("130.00")


def test_a_referrer_whose_balance_is_full_does_not_stop_the_purchase():
    referrer = user_with("99999999.99")
    buyer = user_with("300.00", referred_by=referrer)
    buy(buyer)
    assert balance(buyer) == Decimal("0.00")
    assert_held(referrer, "balance_limit")
    assert balance(referrer) == Decimal("99999999.99")


def test_approving_pays():
    referrer, _buyer, _token, bonus = held()
    staff = user_with(is_staff=True)
    approve_bonus(bonus_id=bonus.id, actor=staff, reason="one household")
    bonus.refresh_from_db()
    assert balance(referrer) == Decimal("130.00")
    assert (bonus.status, bonus.paid_out, bonus.reviewed_by, bonus.review_reason) == (
        "paid",
        Decimal("30.00"),
        staff,
        "one household",
    )


def test_approving_pays_what_refunds_have_left_and_later_ones_take_the_rest():
    referrer, buyer = referred("3000.00")
    for user in (referrer, buyer):
        signed_in_from(user, "192.0.2.7")
    token = buy(buyer)
    bonus = ReferralBonus.objects.get()
    # A third of the purchase was refunded before the review.
    ReferralBonus.objects.filter(pk=bonus.pk).update(refunded=Decimal("100.00"))
    approve_bonus(bonus_id=bonus.id, actor=user_with(is_staff=True), reason="one household")
    assert balance(referrer) == Decimal("120.00")
    AccessToken.objects.filter(pk=token.pk).update(paid=Decimal("200.00"))
    revoke_token(token_id=token.id, actor=None, refund=True)
    assert balance(referrer) == Decimal("100.00")


def test_a_refund_before_the_review_leaves_nothing_to_approve():
    referrer, _buyer, token, bonus = held()
    revoke_token(token_id=token.id, actor=None, refund=True)
    assert balance(referrer) == Decimal("100.00")
    with pytest.raises(NothingLeftToPay):
        approve_bonus(bonus_id=bonus.id, actor=user_with(is_staff=True), reason="x")
    reject_bonus(bonus_id=bonus.id, actor=user_with(is_staff=True), reason="refunded")
    assert balance(referrer) == Decimal("100.00")


def test_rejecting_is_final_and_a_later_refund_takes_nothing():
    referrer, _buyer, token, bonus = held()
    staff = user_with(is_staff=True)
    reject_bonus(bonus_id=bonus.id, actor=staff, reason="same person")
    for decide in (approve_bonus, reject_bonus):
        with pytest.raises(BonusNotHeld):
            decide(bonus_id=bonus.id, actor=staff, reason="again")
    revoke_token(token_id=token.id, actor=None, refund=True)
    assert balance(referrer) == Decimal("100.00")
    bonus.refresh_from_db()
    assert (bonus.status, bonus.review_reason) == ("rejected", "same person")


def test_a_bonus_that_is_not_there():
    for decide in (approve_bonus, reject_bonus):
        with pytest.raises(BonusNotFound):
            decide(bonus_id=uuid.UUID(int=0), actor=user_with(is_staff=True), reason="x")


@pytest.mark.django_db(transaction=True)
def test_twenty_reviews_at_once_decide_once():
    for _ in range(5):
        referrer, _buyer, _token, bonus = held()
        staff = user_with(is_staff=True)

        def decide(number: int, bonus: ReferralBonus = bonus, staff: Any = staff) -> ReferralBonus:
            return (approve_bonus, reject_bonus)[number % 2](bonus_id=bonus.id, actor=staff, reason=str(number))

        outcomes = run_at_once(20, decide)
        assert sum(isinstance(outcome, BonusNotHeld) for outcome in outcomes) == 19
        bonus.refresh_from_db()
        assert balance(referrer) == Decimal("130.00" if bonus.status == "paid" else "100.00")
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


@pytest.mark.django_db(transaction=True)
def test_approval_and_refund_at_once_leave_nothing():
    for _ in range(10):
        referrer, buyer, token, bonus = held()
        staff = user_with(is_staff=True)

        def act(number: int, bonus: ReferralBonus = bonus, staff: Any = staff, token: AccessToken = token) -> Any:
            if number % 2:
                return approve_bonus(bonus_id=bonus.id, actor=staff, reason="x")
            return revoke_token(token_id=token.id, actor=None, refund=True)

        run_at_once(2, act)
        assert (balance(referrer), balance(buyer)) == (Decimal("100.00"), Decimal("1000.00"))
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


def admin_of(**extra: Any) -> Any:
    return staff_client(user_with(is_staff=True, **extra))


LIST = "/admin/referrals/referralbonus/"


@pytest.mark.parametrize(("action", "after"), [("approve", "130.00"), ("reject", "100.00")])
def test_staff_review_with_a_reason(action, after):
    referrer, _buyer, _token, bonus = held()
    staff = admin_of(is_superuser=True)
    page = staff.get(LIST, {"status__exact": "held"})
    assert "Same address" in page.content.decode()
    form = {"action": action, "_selected_action": [str(bonus.pk)]}
    asked = staff.post(LIST, form)
    assert asked.status_code == 200
    assert "Reason" in asked.content.decode()
    assert staff.post(LIST, {**form, "confirm": "1", "reason": ""}).status_code == 200
    assert balance(referrer) == Decimal("100.00")
    assert staff.post(LIST, {**form, "confirm": "1", "reason": "looked at"}).status_code == 302
    bonus.refresh_from_db()
    assert (balance(referrer), bonus.review_reason) == (Decimal(after), "looked at")
    again = staff.post(LIST, {**form, "confirm": "1", "reason": "again"}, follow=True)
    assert "not waiting for review" in again.content.decode()
    assert balance(referrer) == Decimal(after)


def test_staff_without_the_permission_do_not_review():
    from django.contrib.auth.models import Permission

    referrer, _buyer, _token, bonus = held()
    viewer = user_with(is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_referralbonus"))
    staff = staff_client(viewer)
    assert staff.get(LIST).status_code == 200
    staff.post(LIST, {"action": "approve", "_selected_action": [str(bonus.pk)], "confirm": "1", "reason": "x"})
    bonus.refresh_from_db()
    assert (bonus.status, balance(referrer)) == ("held", Decimal("100.00"))


def test_a_bonus_is_looked_at_not_edited():
    *_rest, bonus = held()
    staff = admin_of(is_superuser=True)
    assert staff.get(f"{LIST}{bonus.pk}/change/").status_code == 200
    assert staff.post(f"{LIST}{bonus.pk}/change/", {"amount": "999"}).status_code == 403
    assert staff.get(f"{LIST}add/").status_code == 403

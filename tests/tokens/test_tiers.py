"""Tiers: bought by the month, changed to the cent, renewed on the day, and over when the balance is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission

from accounts.services import set_user_active
from accounts.signals import user_access_changed
from tests.api import Api
from tests.money import api, leave, staff_client, user_with
from tokens import tasks
from tokens.exceptions import TierNotSold, TierUnchanged
from tokens.models import TierSubscription
from tokens.services import choose_tier, claim_due_subscriptions, grant_tier, renew_subscription
from tokens.services.tiers import month_later
from wallet.exceptions import DebtOutstanding, InsufficientBalance
from wallet.models import Account, Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db

URL = "/api/v1/users/me/tier"
START = datetime(2027, 1, 31, 10, 30, tzinfo=UTC)
Tier: Any = apps.get_model("accounts.Tier")


@pytest.fixture
def at(monkeypatch):
    def move(moment: datetime) -> None:
        monkeypatch.setattr(clock, "now", lambda: moment)

    move(START)
    return move


def tier_of(user: Any) -> str:
    return str(get_user_model()._default_manager.get(pk=user.pk).tier_id)


def balance(user: Any) -> Decimal:
    return balance_of(user).balance


def events(name: str) -> list[Any]:
    return list(apps.get_model("notifications.OutboxEvent").objects.filter(event=name).order_by("created_at"))


def subscriber(tier: str = "premium", balance: str = "100.00") -> Any:
    """A user who has just bought a tier and has this many ZNC left."""
    user = user_with("1000.00")
    choose_tier(user=user, tier=tier)
    leave(user, balance)
    user.refresh_from_db()
    return user


def state() -> Any:
    return (
        list(TierSubscription.objects.order_by("pk").values()),
        list(Account.objects.order_by("pk").values()),
        list(get_user_model()._default_manager.order_by("pk").values_list("pk", "tier")),
        Transfer.objects.count(),
    )


# --- buying


def test_what_is_sold_is_public():
    assert api().get("/api/v1/tiers").json()["items"] == [
        {
            "tier": "free",
            "name": "Free",
            "monthly_price": "0.00",
            "api_requests_per_minute": 100,
            "proxy_requests_per_minute": 1000,
        },
        {
            "tier": "premium",
            "name": "Premium",
            "monthly_price": "10.00",
            "api_requests_per_minute": 500,
            "proxy_requests_per_minute": 5000,
        },
        {
            "tier": "enterprise",
            "name": "Enterprise",
            "monthly_price": "50.00",
            "api_requests_per_minute": 2000,
            "proxy_requests_per_minute": 20000,
        },
    ]
    Tier.objects.filter(slug="premium").update(is_active=False)
    assert api().get("/api/v1/tiers").json()["total"] == 2


def test_a_tier_is_bought_for_a_month(at):
    user = user_with("60.00")
    client = api(user)
    before = client.get(URL).json()
    assert (before["tier"], before["paid"], before["period_end"], before["renews"]) == ("free", None, None, False)
    assert before["period_start"] is None
    answer = client.post(URL, {"tier": "premium"}, format="json")
    assert answer.json() == {
        "tier": "premium",
        "name": "Premium",
        "monthly_price": "10.00",
        "api_requests_per_minute": 500,
        "proxy_requests_per_minute": 5000,
        "paid": "10.00",
        "period_start": "2027-01-31T10:30:00.000000Z",
        "period_end": "2027-02-28T10:30:00.000000Z",
        "renews": True,
        "new_balance": "50.00",
    }
    user.refresh_from_db()
    assert tier_of(user) == "premium"
    posted = Transfer.objects.get(kind="SUBSCRIPTION")
    subscription = TierSubscription.objects.get()
    assert (posted.source, posted.amount) == (f"tier:{subscription.id}:0", Decimal("10.00"))
    assert str(subscription) == "premium 2027-01-31"
    [event] = events("tier.bought")
    assert event.data == {
        "subscription_id": str(subscription.id),
        "tier": "premium",
        "price": "10.00",
        "period_end": "2027-02-28T10:30:00+00:00",
        "balance": "50.00",
    }
    assert events("tier.changed")[0].data["from"] == "free"
    listed = client.get("/api/v1/currency/transactions", {"transaction_type": "subscription"}).json()["items"]
    assert [row["amount"] for row in listed] == ["-10.00"]


def test_one_key_buys_once():
    user = user_with("60.00")
    client = Api(user)
    first = client.post("users/me/tier", {"tier": "premium"}, headers={"Idempotency-Key": "one"})
    again = client.post("users/me/tier", {"tier": "premium"}, headers={"Idempotency-Key": "one"})
    assert first == again
    assert client.last["Idempotent-Replayed"] == "true"
    assert balance(user) == Decimal("50.00")


def test_too_little_balance_changes_nothing():
    user = user_with("9.99")
    before = state()
    answer = api(user).post(URL, {"tier": "premium"}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_balance")
    assert state() == before


def test_who_owes_buys_none():
    user = user_with()
    Account.objects.update_or_create(user=user, defaults={"owed": Decimal("1.00")})
    with pytest.raises(DebtOutstanding):
        choose_tier(user=user, tier="premium")
    assert tier_of(user) == "free"


@pytest.mark.parametrize(
    ("tier", "status", "code"),
    [("gold", 400, "tier_not_sold"), ("enterprise", 400, "tier_not_sold"), ("free", 409, "tier_unchanged")],
)
def test_what_is_not_sold_or_there_already_is_refused(tier, status, code):
    Tier.objects.filter(slug="enterprise").update(is_active=False)
    user = user_with("100.00")
    before = state()
    answer = api(user).post(URL, {"tier": tier}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert state() == before
    assert api(user).post(URL, {}, format="json").status_code == 400


def test_a_tier_for_nothing_is_taken_without_a_posting():
    Tier.objects.create(slug="club", name="Club", monthly_price=Decimal("0.00"))
    user = user_with("1.00")
    choose_tier(user=user, tier="club")
    assert (tier_of(user), balance(user)) == ("club", Decimal("1.00"))
    assert not Transfer.objects.filter(kind="SUBSCRIPTION").exists()


# --- changing


def test_another_tier_credits_what_is_unused_to_the_cent(at):
    user = subscriber("premium", "50.00")
    # 10.00 for 28 days; 10 days and a second used.
    at(START + timedelta(days=10, seconds=1))
    chosen = choose_tier(user=user, tier="enterprise")
    assert chosen.balance == Decimal("6.42")
    old, new = TierSubscription.objects.order_by("started_at")
    assert (old.refunded, old.end_reason, old.ended_at) == (Decimal("6.42"), "changed", clock.now())
    assert (new.price, new.period_start) == (Decimal("50.00"), clock.now())
    refund = Transfer.objects.get(kind="REFUND")
    assert (refund.source, refund.amount) == (f"tier:{old.id}:0", Decimal("6.42"))
    assert tier_of(user) == "enterprise"


def test_what_is_credited_pays_for_the_new_tier(at):
    user = subscriber("premium", "40.00")
    assert choose_tier(user=user, tier="enterprise").balance == Decimal("0.00")


def test_an_upgrade_that_is_too_dear_leaves_the_old_one(at):
    user = subscriber("premium", "39.99")
    before = state()
    with pytest.raises(InsufficientBalance):
        choose_tier(user=user, tier="enterprise")
    assert state() == before
    assert events("tier.ended") == []


def test_a_cheaper_one_pays_the_difference_back(at):
    user = subscriber("enterprise", "0.00")
    at(START + timedelta(days=14))
    assert choose_tier(user=user, tier="premium").balance == Decimal("15.00")


@pytest.mark.django_db(transaction=True)
def test_the_ledger_and_the_tiers_agree(at):
    user = subscriber("premium", "100.00")
    at(START + timedelta(days=3))
    choose_tier(user=user, tier="enterprise")
    assert [outcome.name for outcome in reconcile() if outcome.drifts] == []
    TierSubscription.objects.filter(ended_at__isnull=True).update(price=Decimal("49.00"))
    [drifted] = [outcome for outcome in reconcile() if outcome.drifts]
    assert "tier" in drifted.name


def test_the_gateway_hears_of_it_after_the_commit(django_capture_on_commit_callbacks):
    heard: list[Any] = []

    def hear(user_id: Any, **_: Any) -> None:
        heard.append(user_id)

    user_access_changed.connect(hear)
    try:
        user = user_with("60.00")
        with django_capture_on_commit_callbacks(execute=True):
            choose_tier(user=user, tier="premium")
    finally:
        user_access_changed.disconnect(hear)
    assert heard == [user.pk]


# --- cancelling


def test_cancelled_it_ends_with_the_month(at):
    user = subscriber()
    answer = api(user).post(URL, {"tier": "free"}, format="json").json()
    assert (answer["tier"], answer["renews"], answer["new_balance"]) == ("premium", False, "100.00")
    with pytest.raises(TierUnchanged):
        choose_tier(user=user, tier="free")
    assert tier_of(user) == "premium"
    at(month_later(START, 1))
    assert tasks.renew_tiers() == 0
    assert (tier_of(user), balance(user)) == ("free", Decimal("100.00"))
    assert TierSubscription.objects.get().end_reason == "cancelled"
    assert [event.data["reason"] for event in events("tier.ended")] == ["cancelled"]


def test_cancelled_and_chosen_again_it_goes_on(at):
    user = subscriber()
    choose_tier(user=user, tier="free")
    assert choose_tier(user=user, tier="premium").balance == Decimal("100.00")
    with pytest.raises(TierUnchanged):
        choose_tier(user=user, tier="premium")
    at(month_later(START, 1))
    assert tasks.renew_tiers() == 1
    assert len(events("tier.cancelled")) == len(events("tier.resumed")) == 1


# --- the months


@pytest.mark.parametrize(
    ("start", "months", "then"),
    [
        ("2027-01-31", 1, "2027-02-28"),
        ("2027-01-31", 2, "2027-03-31"),
        ("2028-01-30", 1, "2028-02-29"),
        ("2027-12-15", 1, "2028-01-15"),
        ("2027-11-30", 14, "2029-01-30"),
        ("2027-03-31", 1, "2027-04-30"),
    ],
)
def test_months_are_counted_from_the_first_day(start, months, then):
    moment = datetime.fromisoformat(f"{start}T10:30:00+00:00")
    assert month_later(moment, months) == datetime.fromisoformat(f"{then}T10:30:00+00:00")


def test_renewed_on_the_same_day_of_each_month(at):
    user = subscriber(balance="25.00")
    ends = []
    for left in ("15.00", "5.00"):
        subscription = TierSubscription.objects.get()
        assert subscription.period_end is not None
        at(subscription.period_end - timedelta(seconds=1))
        assert tasks.renew_tiers() == 0
        at(subscription.period_end)
        assert tasks.renew_tiers() == 1
        assert tasks.renew_tiers() == 0
        assert balance(user) == Decimal(left)
        ends.append(f"{TierSubscription.objects.get().period_end:%m-%d %H:%M}")
    assert ends == ["03-31 10:30", "04-30 10:30"]
    assert Transfer.objects.filter(kind="SUBSCRIPTION").count() == 3
    assert len(events("tier.renewed")) == 2

    at(datetime(2027, 4, 30, 10, 30, tzinfo=UTC))
    assert tasks.renew_tiers() == 0
    assert (tier_of(user), balance(user)) == ("free", Decimal("5.00"))
    [ended] = events("tier.ended")
    assert (ended.user, ended.data["reason"], ended.data["refunded"]) == (user, "insufficient_balance", "0.00")
    subscription = TierSubscription.objects.get()
    assert (subscription.month, subscription.end_reason) == (2, "insufficient_balance")
    assert tasks.renew_tiers() == 0
    assert len(events("tier.ended")) == 1


def test_another_price_touches_no_month_that_was_paid(at):
    user = subscriber(balance="100.00")
    Tier.objects.filter(slug="premium").update(monthly_price=Decimal("12.00"))
    shown = api(user).get(URL).json()
    assert (shown["paid"], shown["monthly_price"]) == ("10.00", "12.00")
    at(month_later(START, 1))
    tasks.renew_tiers()
    assert balance(user) == Decimal("88.00")


def test_months_in_which_nobody_collected_are_not_collected_later(at):
    user = subscriber(balance="100.00")
    at(month_later(START, 3) + timedelta(days=2))
    assert tasks.renew_tiers() == 1
    assert balance(user) == Decimal("90.00")
    assert TierSubscription.objects.get().period_end == month_later(START, 4)


def test_a_disabled_user_pays_nothing_more(at):
    user = subscriber()
    set_user_active(user_id=user.pk, active=False, actor=None, reason="test")
    at(month_later(START, 1))
    tasks.renew_tiers()
    assert (tier_of(user), balance(user)) == ("free", Decimal("100.00"))
    assert TierSubscription.objects.get().end_reason == "user_disabled"


def test_a_tier_that_is_no_longer_sold_ends_with_the_month(at):
    user = subscriber()
    Tier.objects.filter(slug="premium").update(is_active=False)
    assert tier_of(user) == "premium"
    at(month_later(START, 1))
    tasks.renew_tiers()
    assert (tier_of(user), balance(user)) == ("free", Decimal("100.00"))
    assert TierSubscription.objects.get().end_reason == "tier_not_sold"


def test_what_is_not_due_is_left_alone(at):
    user = subscriber()
    subscription = TierSubscription.objects.get()
    assert renew_subscription(subscription_id=subscription.id) is False
    choose_tier(user=user, tier="enterprise")
    at(month_later(START, 1))
    assert renew_subscription(subscription_id=subscription.id) is False
    other = user_with(is_staff=True)
    grant_tier(user=user, tier="free", reason="r", actor=other)
    assert renew_subscription(subscription_id=subscription.id) is False
    granted = grant_tier(user=user, tier="premium", reason="r", actor=other)
    assert renew_subscription(subscription_id=granted.id) is False
    assert tier_of(user) == "premium"


def test_a_claimed_row_is_left_alone_until_the_claim_is_over(at):
    subscriber()
    subscription = TierSubscription.objects.get()
    end = month_later(START, 1)
    at(end)
    assert claim_due_subscriptions() == [subscription.id]
    assert claim_due_subscriptions() == []
    at(end + timedelta(seconds=121))
    assert tasks.renew_tiers() == 1


# --- staff

ADMIN = "/admin/tokens/tiersubscription/"


def staff(*permissions: str) -> Any:
    user = user_with(is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=["view_tiersubscription", "view_user", "view_tier", *permissions])
    )
    return staff_client(user)


def test_staff_give_a_tier_without_charge(at):
    user = user_with("1.00")
    client = staff("set_tier")
    assert client.get(f"{ADMIN}add/").status_code == 200
    body = {"user": str(user.pk), "tier": "enterprise", "reason": "partner"}
    assert "errorlist" in client.post(f"{ADMIN}add/", {**body, "reason": ""}).content.decode()
    assert tier_of(user) == "free"
    assert client.post(f"{ADMIN}add/", body).status_code == 302
    assert (tier_of(user), balance(user)) == ("enterprise", Decimal("1.00"))
    granted = TierSubscription.objects.get()
    assert (granted.reason, granted.price, granted.period_end) == ("partner", Decimal("0.00"), None)
    assert granted.granted_by is not None
    at(month_later(START, 12))
    assert tasks.renew_tiers() == 0
    user.refresh_from_db()
    shown = api(user).get(URL).json()
    assert (shown["tier"], shown["paid"], shown["period_end"], shown["renews"]) == ("enterprise", "0.00", None, False)
    assert client.get(ADMIN).status_code == client.get(f"{ADMIN}{granted.pk}/change/").status_code == 200
    assert client.post(f"{ADMIN}{granted.pk}/change/", {"reason": "x"}).status_code == 403

    # The owner gives it back at once.
    assert choose_tier(user=user, tier="free").subscription is None
    assert tier_of(user) == "free"
    assert TierSubscription.objects.get().end_reason == "cancelled"


def test_what_staff_give_takes_the_place_of_what_was_bought(at):
    user = subscriber("premium", "0.00")
    at(START + timedelta(days=14))
    actor = user_with(is_staff=True)
    grant_tier(user=user, tier="enterprise", reason="r", actor=actor)
    assert (tier_of(user), balance(user)) == ("enterprise", Decimal("5.00"))
    leave(user, "20.00")
    assert choose_tier(user=user, tier="premium").balance == Decimal("10.00")
    page = staff("set_tier").post(f"{ADMIN}add/", {"user": str(user.pk), "tier": "free", "reason": "r"}, follow=True)
    assert page.status_code == 200
    assert (tier_of(user), balance(user)) == ("free", Decimal("20.00"))
    assert [event.data["reason"] for event in events("tier.ended")] == ["set_by_staff", "changed", "set_by_staff"]


def test_giving_needs_its_own_permission_and_a_tier():
    user = user_with()
    body = {"user": str(user.pk), "tier": "enterprise", "reason": "r"}
    assert staff().post(f"{ADMIN}add/", body).status_code == 403
    page = staff("set_tier").post(f"{ADMIN}add/", {**body, "tier": "free"}, follow=True).content.decode()
    assert "has this tier already" in page
    with pytest.raises(TierNotSold):
        grant_tier(user=user, tier="gold", reason="r", actor=user)
    assert tier_of(user) == "free"
    assert not TierSubscription.objects.exists()

"""The referrer's bonus: when, how much, once, and what a refund takes back."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext

from bundles.models import Bundle
from bundles.services import purchase_bundle
from referrals.models import ReferralBonus
from referrals.services import award_for_purchase
from tests.money import activate_so_that, user_with
from tests.threads import Meeting, run_at_once
from tokens.models import AccessToken, TokenPrice
from tokens.services import purchase_token, revoke_token
from wallet.exceptions import InsufficientBalance
from wallet.models import Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from wallet.services import SystemAccount, TransferKind, accounts, claw_back, open_account

pytestmark = pytest.mark.django_db


def referred(balance: str = "1000.00", **extra: Any) -> tuple[Any, Any]:
    """Return a new referrer without money, and a new user whom they referred, with this many ZNC."""
    referrer = user_with("0.00", **extra)
    return referrer, user_with(balance, referred_by=referrer)


def sell_at(price: str, duration_hours: int = 24) -> None:
    TokenPrice.objects.filter(duration_hours=duration_hours).update(price=Decimal(price))


def balance(user: Any) -> Decimal:
    return balance_of(user).balance


def buy(user: Any, duration_hours: int = 24) -> AccessToken:
    return purchase_token(owner=user, duration_hours=duration_hours).token


def refund(token: AccessToken) -> Decimal:
    return revoke_token(token_id=token.id, actor=None, refund=True).refund_amount


def events(name: str) -> Any:
    return apps.get_model("notifications.OutboxEvent").objects.filter(event=name)


def assert_sound() -> None:
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


@pytest.mark.parametrize(
    ("price", "bonus"),
    [
        ("99.99", "0.00"),
        ("100.00", "0.00"),
        ("100.01", "10.00"),
        ("100.09", "10.00"),
        ("100.10", "10.01"),
        ("300.00", "30.00"),
        ("999.99", "99.99"),
    ],
)
def test_a_first_purchase_brings_a_tenth_of_what_is_over_the_line_rounded_down(price, bonus):
    referrer, buyer = referred()
    sell_at(price)
    token = buy(buyer)
    assert balance(referrer) == Decimal(bonus)
    assert balance(buyer) == Decimal("1000.00") - Decimal(price)
    posted = list(Transfer.objects.filter(kind="REFERRAL_BONUS"))
    if bonus == "0.00":
        assert not posted
        assert not ReferralBonus.objects.exists()
        return
    [transfer], [row] = posted, ReferralBonus.objects.all()
    assert (transfer.amount, transfer.debit_account.system, transfer.source) == (
        Decimal(bonus),
        "promotions",
        f"referral:{row.id}",
    )
    assert (row.referee, row.referrer, row.purchase_source) == (buyer, referrer, f"token:{token.id}")
    assert (row.amount, row.purchase_paid, row.status) == (Decimal(bonus), Decimal(price), "paid")
    [event] = events("referral.bonus")
    assert (event.user, event.data["amount"]) == (referrer, bonus)
    assert buyer.email not in str(event.data)
    assert buyer.username not in str(event.data)
    assert buyer.email not in transfer.description


def test_a_small_purchase_before_does_not_spend_the_bonus():
    referrer, buyer = referred()
    buy(buyer, 24)
    buy(buyer, 168)  # 100.00, which is not over the line
    assert balance(referrer) == Decimal("0.00")
    buy(buyer, 720)
    assert balance(referrer) == Decimal("30.00")


def test_the_second_qualifying_purchase_brings_nothing():
    referrer, buyer = referred()
    first = buy(buyer, 720)
    buy(buyer, 720)
    assert balance(referrer) == Decimal("30.00")
    refund(first)
    buy(buyer, 720)
    assert balance(referrer) == Decimal("0.00")
    assert ReferralBonus.objects.count() == 1


def test_a_bundle_earns_the_bonus_too():
    referrer, buyer = referred("850.00")
    bought = purchase_bundle(buyer=buyer, bundle_id=Bundle.objects.get(name="Developer Pack").pk)
    assert balance(referrer) == Decimal("85.00")
    assert ReferralBonus.objects.get().purchase_source == bought.purchase.source


def test_nobody_referred_them():
    buy(user_with("300.00"), 720)
    assert not ReferralBonus.objects.exists()


def test_each_referee_brings_their_own():
    referrer, first = referred()
    second = user_with("1000.00", referred_by=referrer)
    buy(first, 720)
    buy(second, 720)
    assert balance(referrer) == Decimal("60.00")


def test_the_bonus_pays_what_the_referrer_owes_first():
    referrer, buyer = referred("1000.00")
    earlier = user_with("300.00", referred_by=referrer)
    token = buy(earlier, 720)
    sell_at("30.00")
    buy(referrer)
    refund(token)
    assert (balance(referrer), balance_of(referrer).owed) == (Decimal("0.00"), Decimal("30.00"))
    sell_at("400.00")
    buy(buyer)
    assert (balance(referrer), balance_of(referrer).owed) == (Decimal("10.00"), Decimal("0.00"))


def test_a_refused_purchase_earns_nothing():
    referrer, buyer = referred("299.99")
    with pytest.raises(InsufficientBalance):
        buy(buyer, 720)
    assert balance(referrer) == Decimal("0.00")
    assert not ReferralBonus.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_awarding_needs_the_transaction_of_the_purchase():
    referrer, buyer = referred()
    with pytest.raises(TransactionManagementError):
        award_for_purchase(
            referee=buyer,
            referrer=referrer,
            referrer_account=open_account(referrer),
            paid=Decimal("300.00"),
            purchase_source="token:x",
        )
    assert not ReferralBonus.objects.exists()


def test_a_full_refund_takes_all_of_it_back():
    referrer, buyer = referred()
    refund(buy(buyer, 720))
    assert (balance(referrer), balance(buyer)) == (Decimal("0.00"), Decimal("1000.00"))
    [reversal] = Transfer.objects.filter(kind="REFERRAL_REVERSAL")
    assert (reversal.amount, reversal.credit_account.system) == (Decimal("30.00"), "promotions")
    bonus = ReferralBonus.objects.get()
    assert (bonus.paid_out, bonus.taken_back, bonus.refunded) == (
        Decimal("30.00"),
        Decimal("30.00"),
        Decimal("300.00"),
    )
    [event] = events("referral.bonus_reversed")
    assert (event.user, event.data["amount"]) == (referrer, "30.00")


def test_a_refund_of_part_takes_that_part_back():
    """30 d at 300.00 with 1,699,200 s left refunds 196.66, which is 19.66 of the bonus."""
    referrer, buyer = referred()
    token = buy(buyer, 720)
    activate_so_that(token, seconds_left=1_699_200.9)
    assert refund(token) == Decimal("196.66")
    assert balance(referrer) == Decimal("10.34")


def test_what_the_referrer_has_spent_is_owed():
    referrer, buyer = referred()
    token = buy(buyer, 720)
    sell_at("25.00")
    buy(referrer)
    refund(token)
    assert (balance(referrer), balance_of(referrer).owed) == (Decimal("0.00"), Decimal("25.00"))


def test_the_tokens_of_a_bundle_refunded_one_by_one_take_back_exactly_the_bonus():
    referrer, buyer = referred("101.01")
    Bundle.objects.filter(name="Starter Pack").update(
        total_price=Decimal("101.01"), base_price=Decimal("101.01"), override_reason="test"
    )
    bought = purchase_bundle(buyer=buyer, bundle_id=Bundle.objects.get(name="Starter Pack").pk)
    assert balance(referrer) == Decimal("10.10")
    # 101.01 is 20.21 and four times 20.20; after each the bonus is 10.10 less its floored share of all refunds.
    left = []
    for one in bought.tokens:
        refund(one.token)
        left.append(str(balance(referrer)))
    assert left == ["8.08", "6.06", "4.04", "2.02", "0.00"]
    assert balance(buyer) == Decimal("101.01")
    assert ReferralBonus.objects.get().taken_back == Decimal("10.10")


def test_revoking_without_a_refund_takes_nothing_back():
    referrer, buyer = referred()
    revoke_token(token_id=buy(buyer, 720).id, actor=None, refund=False)
    assert balance(referrer) == Decimal("30.00")


def test_a_refund_of_another_purchase_takes_nothing_back():
    referrer, buyer = referred()
    buy(buyer, 720)
    refund(buy(buyer, 720))
    assert balance(referrer) == Decimal("30.00")


def test_a_token_that_went_to_the_referrer_is_refunded_to_them_and_its_bonus_taken_back():
    """Payee and referrer are one account then."""
    referrer, buyer = referred()
    token = buy(buyer, 720)
    AccessToken.objects.filter(pk=token.pk).update(owner=referrer)
    refund(token)
    assert balance(referrer) == Decimal("300.00")


def test_the_database_refuses_a_second_bonus_and_one_for_oneself():
    referrer, buyer = referred()
    buy(buyer, 720)
    row = ReferralBonus.objects.get()
    copy = {"purchase_paid": row.purchase_paid, "amount": row.amount, "status": "held"}
    with pytest.raises(IntegrityError), transaction.atomic():
        ReferralBonus.objects.create(referee=buyer, referrer=referrer, purchase_source="token:other", **copy)
    with pytest.raises(IntegrityError), transaction.atomic():
        ReferralBonus.objects.create(referee=referrer, referrer=referrer, purchase_source="token:other", **copy)
    with pytest.raises(IntegrityError), transaction.atomic():
        ReferralBonus.objects.create(
            referee=user_with(), referrer=referrer, purchase_source=row.purchase_source, **copy
        )


def test_who_referred_whom_is_not_oneself():
    user = user_with()
    with pytest.raises(IntegrityError), transaction.atomic():
        get_user_model()._default_manager.filter(pk=user.pk).update(referred_by=user.pk)


@pytest.mark.django_db(transaction=True)
def test_the_number_of_queries_of_a_purchase_with_a_bonus_is_fixed():
    counts = set()
    for _ in range(3):
        referrer, buyer = referred()
        open_account(referrer)
        with CaptureQueriesContext(connection) as queries:
            buy(buyer, 720)
        counts.add(len(queries))
    # Thirteen of any purchase; the referrer; whether a bonus exists; addresses of both and devices, as sign-in and
    # tokens know them and as the gateway does; lock in the posting, savepoint, transfer, release, balance, event; the
    # bonus.
    assert counts == {28}
    with CaptureQueriesContext(connection) as queries:
        buy(buyer)
    assert len(queries) == 14


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_twenty_first_purchases_at_once_bring_one_bonus():
    for _ in range(20):
        referrer, buyer = referred("6000.00")
        outcomes = run_at_once(20, partial(lambda buyer, _: buy(buyer, 720), buyer))
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert balance(referrer) == Decimal("30.00")
        assert ReferralBonus.objects.filter(referee=buyer).count() == 1
    assert_sound()


def read_unlocked(two: Meeting, found: Any) -> list[Any]:
    rows = list(found.order_by("pk"))
    two.wait()
    return rows


@pytest.mark.django_db(transaction=True)
def test_without_the_lock_first_purchases_at_once_collide(monkeypatch):
    """The negative control. The unique constraint still allows one bonus only, at the price of failed purchases."""
    for _ in range(20):
        _referrer, buyer = referred("6000.00")
        with monkeypatch.context() as patch:
            patch.setattr(accounts, "_lock", partial(read_unlocked, Meeting(2)))
            outcomes = run_at_once(20, partial(lambda buyer, _: buy(buyer, 720), buyer))
        assert ReferralBonus.objects.filter(referee=buyer).count() <= 1
        if any(isinstance(outcome, Exception) for outcome in outcomes) or balance(buyer) != 0:
            return
    pytest.fail("Twenty rounds without a lock were all right.")


@pytest.mark.django_db(transaction=True)
def test_twenty_referees_of_one_referrer_at_once():
    referrer = user_with()
    buyers = [user_with("300.00", referred_by=referrer) for _ in range(20)]
    outcomes = run_at_once(20, lambda number: buy(buyers[number], 720))
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert balance(referrer) == Decimal("600.00")
    assert_sound()


@pytest.mark.django_db(transaction=True)
def test_people_who_referred_each_other_in_a_circle_do_not_deadlock():
    """Everybody is buyer and referrer at once: only one order of locks lets all of them through."""
    people = [user_with("3000.00") for _ in range(4)]
    for number, person in enumerate(people):
        person.referred_by = people[number - 1]
        person.save(update_fields=["referred_by"])
    outcomes = run_at_once(20, lambda number: buy(people[number % 4], 720))
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert [balance(person) for person in people] == [Decimal("1530.00")] * 4
    assert_sound()


@pytest.mark.django_db(transaction=True)
def test_the_tokens_of_a_bundle_refunded_at_once_take_back_exactly_the_bonus():
    for _ in range(3):
        referrer, buyer = referred("2000.00")
        bought = purchase_bundle(buyer=buyer, bundle_id=Bundle.objects.get(name="Team Pack").pk)
        assert balance(referrer) == Decimal("200.00")
        outcomes = run_at_once(20, partial(lambda bought, number: refund(bought.tokens[number].token), bought))
        assert outcomes == [Decimal("80.00")] * 20
        assert balance(referrer) == Decimal("40.00")
        for one in bought.tokens[20:]:
            refund(one.token)
        assert (balance(referrer), balance(buyer)) == (Decimal("0.00"), Decimal("2000.00"))
    assert_sound()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("UPDATE referrals_referralbonus SET paid_out = 29", "each referral bonus is one posting of what was paid out"),
        (
            "UPDATE referrals_referralbonus SET taken_back = 1",
            "what was taken back of each referral bonus is what its reversals sum to",
        ),
        (
            "UPDATE referrals_referralbonus SET amount = 31",
            "each paid referral bonus is worth its share of what was not refunded",
        ),
        (
            "UPDATE referrals_referralbonus SET refunded = 1",
            "refunds of each purchase that earned a bonus are those of its tokens",
        ),
    ],
)
def test_reconcile_finds_a_bonus_that_was_tampered_with(statement, check):
    _referrer, buyer = referred()
    buy(buyer, 720)
    assert_sound()
    with connection.cursor() as cursor:
        cursor.execute(statement)
    found = {outcome.name: [drift.row for drift in outcome.drifts] for outcome in reconcile() if outcome.drifts}
    assert found[check] == [f"bonus {ReferralBonus.objects.get().id}"]


@pytest.mark.django_db(transaction=True)
def test_reconcile_finds_a_reversal_of_nothing():
    account = open_account(user_with("1.00"))
    with transaction.atomic():
        claw_back(
            account=account,
            counterparty=SystemAccount.PROMOTIONS,
            amount=Decimal("1.00"),
            kind=TransferKind.REFERRAL_REVERSAL,
            source="referral:none:token:x",
        )
    found = {outcome.name: [drift.row for drift in outcome.drifts] for outcome in reconcile() if outcome.drifts}
    assert found == {
        "what was taken back of each referral bonus is what its reversals sum to": ["referral:none"],
    }


def test_the_share_of_the_bonus_is_floored_from_all_refunds_together():
    bonus = ReferralBonus(amount=Decimal("10.00"), purchase_paid=Decimal("100.01"))
    assert bonus.due == Decimal("10.00")
    for refunded, due in [("0.01", "10.00"), ("0.10", "10.00"), ("0.11", "9.99"), ("100.00", "0.01")]:
        bonus.refunded = Decimal(refunded)
        assert bonus.due == Decimal(due)
    bonus.refunded = bonus.purchase_paid
    assert bonus.due == Decimal("0.00")

"""POST /bundles/{id}/purchase and the service behind it."""

from __future__ import annotations

import uuid
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.test.utils import CaptureQueriesContext

from bundles.models import Bundle, BundlePurchase
from bundles.services import purchase_bundle, split_price
from tests.money import activate_so_that, api, staff_client, user_with
from tests.threads import Meeting, run_at_once
from tokens import secrets
from tokens.models import AccessToken, Scope, TokenPrice
from tokens.services import revoke_token
from wallet.exceptions import InsufficientBalance
from wallet.models import Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from wallet.services import accounts

pytestmark = pytest.mark.django_db


def bundle(name: str = "Starter Pack") -> Bundle:
    return Bundle.objects.get(name=name)


def post(user: Any, bundle_id: Any = None, **headers: str) -> Any:
    path = f"/api/v1/bundles/{bundle_id or bundle().pk}/purchase"
    return api(user).post(path, format="json", headers=headers)


def assert_nothing_bought(user: Any, balance: str) -> None:
    assert balance_of(user).balance == Decimal(balance)
    assert not AccessToken.objects.filter(owner=user).exists()
    assert not BundlePurchase.objects.exists()
    assert not Transfer.objects.filter(kind="PURCHASE").exists()
    assert not apps.get_model("notifications.OutboxEvent").objects.filter(event="bundle.purchased").exists()


def test_a_bundle_is_bought_in_one_debit():
    user = user_with("100.00")
    answer = post(user)
    assert answer.status_code == 201
    body = answer.json()
    tokens = body.pop("tokens")
    assert body == {
        "bundle_name": "Starter Pack",
        "tokens_generated": 5,
        "cost_znc": "81.00",
        "new_balance": "19.00",
    }
    assert len({one["token"] for one in tokens}) == 5
    purchase = BundlePurchase.objects.get()
    for one in tokens:
        stored = AccessToken.objects.get(pk=one["id"])
        assert one == {
            "id": str(stored.id),
            "token": one["token"],
            "token_hint": f"znz_…{one['token'][-4:]}",
            "duration_hours": 24,
            "scope": "full",
            "cost_znc": "16.20",
            "created_at": one["created_at"],
            "activated_at": None,
            "expires_at": None,
            "is_active": True,
        }
        assert stored.digest == secrets.digest(one["token"])
        assert (stored.owner, stored.list_price, stored.paid) == (user, Decimal("18.00"), Decimal("16.20"))
        assert stored.purchase_source == purchase.source
    [posted] = Transfer.objects.filter(kind="PURCHASE")
    assert (posted.amount, posted.source, posted.credit_account.system) == (
        Decimal("81.00"),
        purchase.source,
        "revenue",
    )
    assert (purchase.buyer, purchase.bundle_name, purchase.paid) == (user, "Starter Pack", Decimal("81.00"))
    [event] = apps.get_model("notifications.OutboxEvent").objects.filter(event="bundle.purchased")
    assert sorted(event.data["token_ids"]) == sorted(one["id"] for one in tokens)
    assert not any(one["token"] in str(event.data) for one in tokens)


@pytest.mark.parametrize(
    ("total", "count", "shares"),
    [
        ("50.00", 3, ["16.67", "16.67", "16.66"]),
        ("81.00", 5, ["16.20"] * 5),
        ("0.05", 5, ["0.01"] * 5),
        ("0.06", 5, ["0.02", *["0.01"] * 4]),
        ("1.00", 1, ["1.00"]),
        ("99999999.99", 7, ["14285714.29"] * 3 + ["14285714.28"] * 4),
    ],
)
def test_the_price_is_split_to_the_cent_larger_shares_first(total, count, shares):
    split = split_price(Decimal(total), count)
    assert split == [Decimal(share) for share in shares]
    assert (sum(split), len(split), sorted(split, reverse=True)) == (Decimal(total), count, split)
    assert split[0] - split[-1] <= Decimal("0.01")


def test_starter_pack_revoked_unused_pays_back_exactly_what_it_cost():
    user = user_with("81.00")
    bought = purchase_bundle(buyer=user, bundle_id=bundle().pk)
    assert bought.balance == Decimal("0.00")
    for one in bought.tokens:
        revoke_token(token_id=one.token.id, actor=user, refund=True)
    assert balance_of(user).balance == Decimal("81.00")


def test_a_bundle_never_pays_back_its_list_price():
    """Twenty one-week tokens for 1600.00 are worth 2000.00 one by one."""
    Bundle.objects.filter(name="Ultimate Package").update(is_active=True)
    user = user_with("1600.00")
    for one in purchase_bundle(buyer=user, bundle_id=bundle("Ultimate Package").pk).tokens:
        revoke_token(token_id=one.token.id, actor=user, refund=True)
    assert balance_of(user).balance == Decimal("1600.00")


def test_half_used_tokens_pay_back_half_of_their_share():
    user = user_with("81.00")
    [one, *_rest] = purchase_bundle(buyer=user, bundle_id=bundle().pk).tokens
    activate_so_that(one.token, seconds_left=43_200.9)
    assert revoke_token(token_id=one.token.id, actor=user, refund=True).refund_amount == Decimal("8.10")


def test_a_later_price_changes_nothing_that_was_bought():
    user = user_with("100.00")
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal("20.00"))
    [one, *_rest] = purchase_bundle(buyer=user, bundle_id=bundle().pk).tokens
    assert (one.token.list_price, one.token.paid) == (Decimal("20.00"), Decimal("16.20"))
    Bundle.objects.update(is_active=False)
    assert revoke_token(token_id=one.token.id, actor=user, refund=True).refund_amount == Decimal("16.20")


def test_a_duration_that_is_sold_in_bundles_only():
    TokenPrice.objects.filter(duration_hours=24).update(is_active=False)
    [one, *_rest] = purchase_bundle(buyer=user_with("81.00"), bundle_id=bundle().pk).tokens
    assert one.token.list_price == Decimal("18.00")


def test_secrets_are_not_in_what_a_log_would_show():
    bought = purchase_bundle(buyer=user_with("81.00"), bundle_id=bundle().pk)
    assert not any(one.secret in repr(bought) for one in bought.tokens)


def test_staff_look_at_purchases_and_change_none():
    bought = purchase_bundle(buyer=user_with("81.00"), bundle_id=bundle().pk)
    staff = staff_client(user_with(is_staff=True, is_superuser=True))
    assert "Starter Pack" in staff.get("/admin/bundles/bundlepurchase/").content.decode()
    change = f"/admin/bundles/bundlepurchase/{bought.purchase.pk}/change/"
    assert staff.get(change).status_code == 200
    assert staff.post(change, {"paid": "1.00"}).status_code == 403


def test_too_little_balance_buys_nothing():
    user = user_with("80.99")
    answer = post(user)
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_balance")
    assert_nothing_bought(user, "80.99")


@pytest.mark.parametrize("change", ["bundle", "scope"])
def test_what_is_switched_off_is_not_sold(change):
    user = user_with("100.00")
    if change == "bundle":
        Bundle.objects.filter(name="Starter Pack").update(is_active=False)
    else:
        Scope.objects.filter(slug="full").update(is_active=False)
    answer = post(user)
    assert (answer.status_code, answer.json()["code"]) == (400, "bundle_not_sold")
    assert_nothing_bought(user, "100.00")


def test_a_bundle_that_is_not_there():
    user = user_with("100.00")
    assert post(user, uuid.UUID(int=0)).status_code == 404
    assert_nothing_bought(user, "100.00")


def test_nobody_signed_in_buys_nothing():
    assert post(None).status_code == 401
    assert not AccessToken.objects.exists()


def test_the_same_key_returns_the_same_tokens():
    user = user_with("200.00")
    first, second = (post(user, **{"Idempotency-Key": "key-1"}) for _ in range(2))
    assert first.json() == second.json()
    assert balance_of(user).balance == Decimal("119.00")
    assert AccessToken.objects.filter(owner=user).count() == 5
    other = post(user, bundle("Developer Pack").pk, **{"Idempotency-Key": "key-1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert balance_of(user).balance == Decimal("119.00")


def test_a_key_works_again_after_a_refusal():
    user = user_with("80.00")
    assert post(user, **{"Idempotency-Key": "key-1"}).status_code == 402
    api(user).post("/api/v1/currency/mock-purchase", {"amount": "1.00"}, format="json")
    assert post(user, **{"Idempotency-Key": "key-1"}).status_code == 201


@pytest.mark.django_db(transaction=True)
def test_the_number_of_queries_does_not_grow_with_the_bundle():
    counts = set()
    for name in ("Starter Pack", "Team Pack", "Enterprise Pack"):
        user, pack = user_with("12000.00"), bundle(name).pk
        with CaptureQueriesContext(connection) as queries:
            purchase_bundle(buyer=user, bundle_id=pack)
        counts.add(len(queries))
    # BEGIN, lock, bundle, purchase, lock in the posting, savepoint, transfer, release, balance, price, tokens, event,
    # COMMIT.
    assert counts == {13}


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_twenty_at_once_with_money_for_three_buy_three():
    pack = bundle().pk
    for _ in range(20):
        user = user_with("250.00")
        outcomes = run_at_once(20, partial(lambda user, _: purchase_bundle(buyer=user, bundle_id=pack), user))
        refused = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert len(refused) == 17
        assert all(isinstance(outcome, InsufficientBalance) for outcome in refused)
        assert balance_of(user).balance == Decimal("7.00")
        assert AccessToken.objects.filter(owner=user).count() == 15
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


def read_unlocked(two: Meeting, found: Any) -> list[Any]:
    rows = list(found.order_by("pk"))
    two.wait()
    return rows


@pytest.mark.django_db(transaction=True)
def test_without_the_lock_twenty_at_once_go_wrong(monkeypatch):
    """The negative control: what the test before relies on is the account's lock."""
    pack = bundle().pk
    for _ in range(20):
        user = user_with("250.00")
        with monkeypatch.context() as patch:
            patch.setattr(accounts, "_lock", partial(read_unlocked, Meeting(2)))
            run_at_once(20, partial(lambda user, _: purchase_bundle(buyer=user, bundle_id=pack), user))
        if AccessToken.objects.filter(owner=user).count() != 15:
            return
    pytest.fail("Twenty rounds without a lock were all right.")


@pytest.mark.django_db(transaction=True)
def test_twenty_requests_with_one_key_buy_once():
    user = user_with("1000.00")
    answers = run_at_once(20, lambda _: post(user, **{"Idempotency-Key": "one"}))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert AccessToken.objects.filter(owner=user).count() == 5
    assert balance_of(user).balance == Decimal("919.00")


@pytest.mark.django_db(transaction=True)
def test_reconcile_finds_a_bundle_whose_shares_do_not_add_up():
    user = user_with("100.00")
    bought = purchase_bundle(buyer=user, bundle_id=bundle().pk)
    assert [outcome for outcome in reconcile() if outcome.drifts] == []
    AccessToken.objects.filter(pk=bought.tokens[0].token.pk).update(paid=Decimal("16.21"))
    found = {outcome.name: [drift.row for drift in outcome.drifts] for outcome in reconcile() if outcome.drifts}
    assert found == {
        "each bundle was paid by one posting, which its tokens' shares add up to": [
            f"bundle purchase {bought.purchase.id}"
        ]
    }

"""DELETE /tokens/{id} and the service behind it."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.db import connections, transaction

from tests.money import activate_so_that, api, token_of_new_user, user_with
from tests.threads import run_at_once
from tokens.exceptions import (
    TokenAlreadyRevoked,
    TokenChangedOwner,
    TokenExpired,
    TokenNotFound,
    TokenNotUsable,
)
from tokens.models import AccessToken, TokenPrice
from tokens.services import (
    Activation,
    Revocation,
    activate_token,
    purchase_token,
    record_expiries,
    revocation,
    revoke_token,
)
from tokens.services.access import find_token
from tokens.signals import credentials_changed
from wallet.exceptions import BalanceLimitExceeded
from wallet.models import Account, Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


def url(token_id: object) -> str:
    return f"/api/v1/tokens/{token_id}"


def events(name: str) -> list[Any]:
    return list(apps.get_model("notifications.OutboxEvent").objects.filter(event=name))


@pytest.fixture
def told():
    """What ``credentials_changed`` was sent with."""
    calls: list[dict[str, Any]] = []

    def receive(**arguments: Any) -> None:
        calls.append({name: arguments[name] for name in ("digests", "token_ids", "revoked")})

    credentials_changed.connect(receive)
    yield calls
    credentials_changed.disconnect(receive)


def test_an_unused_token_pays_all_back(told, django_capture_on_commit_callbacks):
    user = user_with("100.00")
    token = purchase_token(owner=user, duration_hours=24).token
    with django_capture_on_commit_callbacks(execute=True):
        answer = api(user).delete(url(token.id))
        assert told == []
    assert answer.status_code == 200
    assert answer.json() == {
        "revoked": True,
        "refund_amount": "18.00",
        "new_balance": "100.00",
        "message": "The token was revoked.",
    }
    token.refresh_from_db()
    assert token.status() == "revoked"
    assert (token.refunded, token.revoked_reason) == (Decimal("18.00"), "owner")
    posted = Transfer.objects.get(kind="REFUND")
    assert (posted.amount, posted.source, posted.debit_account.system) == (
        Decimal("18.00"),
        f"token:{token.id}",
        "revenue",
    )
    assert told == [{"digests": [token.digest], "token_ids": [token.id], "revoked": True}]
    [event] = events("token.revoked")
    assert event.user == user
    assert event.data == {
        "token_id": str(token.id),
        "refund_amount": "18.00",
        "balance": "100.00",
        "reason": "owner",
        "actor_id": str(user.pk),
    }


@pytest.mark.parametrize(
    ("hours", "seconds_left", "refund"),
    [(24, 43_224, "9.00"), (24, 43_272, "9.01"), (720, 1_699_200, "196.66"), (168, 168 * 3600 - 1, "99.99")],
)
def test_the_unused_time_is_paid_back(monkeypatch, hours, seconds_left, refund):
    user = user_with("300.00")
    token = purchase_token(owner=user, duration_hours=hours).token
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)
    activate_so_that(token, seconds_left=seconds_left)
    before = balance_of(user).balance
    answer = api(user).delete(url(token.id))
    assert answer.json()["refund_amount"] == refund
    assert balance_of(user).balance == before + Decimal(refund)


def test_what_was_paid_counts_and_not_the_list_price():
    """A token that came out of a discounted pack must not pay back more than its share."""
    bought = token_of_new_user(168, balance="100.00")
    AccessToken.objects.filter(pk=bought.token.pk).update(paid=Decimal("80.00"), list_price=Decimal("100.00"))
    revoked = revoke_token(token_id=bought.token.id, actor=None, refund=True)
    assert revoked.refund_amount == Decimal("80.00")


def test_a_share_below_a_cent_moves_nothing():
    bought = token_of_new_user(24, balance="18.00")
    activate_so_that(bought.token, seconds_left=40)
    revoked = revoke_token(token_id=bought.token.id, actor=None, refund=True)
    assert revoked.refund_amount == Decimal("0.00")
    assert not Transfer.objects.filter(kind="REFUND").exists()
    assert events("token.revoked")[0].data["actor_id"] is None


def test_without_refund_nothing_is_paid_back():
    bought = token_of_new_user(24, balance="18.00")
    staff = user_with(is_staff=True)
    revoked = revoke_token(token_id=bought.token.id, actor=staff, refund=False, reason="abuse")
    assert (revoked.refund_amount, revoked.balance) == (Decimal("0.00"), Decimal("0.00"))
    bought.token.refresh_from_db()
    assert (bought.token.revoked_reason, bought.token.refunded) == ("abuse", Decimal("0.00"))
    assert not Transfer.objects.filter(kind="REFUND").exists()


def assert_refused(token: AccessToken, error: type[Exception], status: int, code: str) -> None:
    before = list(AccessToken.objects.filter(pk=token.pk).values()), list(Transfer.objects.values())
    answer = api(token.owner).delete(url(token.id))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    for refund in (True, False):
        with pytest.raises(error):
            revoke_token(token_id=token.id, actor=None, refund=refund)
    assert (list(AccessToken.objects.filter(pk=token.pk).values()), list(Transfer.objects.values())) == before


def test_a_second_revocation_moves_nothing():
    token = token_of_new_user().token
    revoke_token(token_id=token.id, actor=None, refund=True)
    assert_refused(token, TokenAlreadyRevoked, 409, "token_already_revoked")
    assert len(events("token.revoked")) == 1


def test_an_expired_token_is_not_revoked():
    token = token_of_new_user().token
    activate_so_that(token, seconds_left=-1)
    assert_refused(token, TokenExpired, 409, "token_expired")


def test_a_refund_above_the_largest_balance_moves_nothing():
    token = token_of_new_user(balance="18.00").token
    Account.objects.filter(user=token.owner).update(balance=Decimal("99999999.99"))
    before = list(AccessToken.objects.values())
    answer = api(token.owner).delete(url(token.id))
    assert (answer.status_code, answer.json()["code"]) == (400, "balance_limit_exceeded")
    with pytest.raises(BalanceLimitExceeded):
        revoke_token(token_id=token.id, actor=None, refund=True)
    assert list(AccessToken.objects.values()) == before


def test_a_debt_is_paid_first_by_a_refund():
    token = token_of_new_user(balance="18.00").token
    Account.objects.filter(user=token.owner).update(owed=Decimal("5.00"))
    revoked = revoke_token(token_id=token.id, actor=None, refund=True)
    assert revoked.balance == Decimal("13.00")
    assert balance_of(token.owner).owed == Decimal("0.00")


def test_the_token_of_another_is_not_there():
    token = token_of_new_user().token
    stranger = user_with()
    assert api(stranger).delete(url(token.id)).status_code == 404
    with pytest.raises(TokenNotFound):
        revoke_token(token_id=token.id, actor=stranger, owner=stranger, refund=True)
    with pytest.raises(TokenNotFound):
        revoke_token(token_id=uuid.uuid4(), actor=stranger, refund=True)
    token.refresh_from_db()
    assert token.revoked_at is None


@pytest.mark.parametrize("token_id", ["x", "1", "00000000-0000-0000-0000-000000000000", "%00"])
def test_malformed_ids_are_not_there(token_id):
    answer = api(user_with()).delete(url(token_id))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_fails_does_not_undo_the_revocation():
    def fail(**_: Any) -> None:
        raise ConnectionError("the cache is away")

    token = token_of_new_user().token
    credentials_changed.connect(fail)
    try:
        assert api(token.owner).delete(url(token.id)).status_code == 200
    finally:
        credentials_changed.disconnect(fail)
    token.refresh_from_db()
    assert token.revoked_at is not None


@pytest.mark.django_db(transaction=True)
def test_twenty_revocations_at_once_refund_once():
    token = token_of_new_user(balance="18.00").token
    outcomes = run_at_once(20, lambda _: revoke_token(token_id=token.id, actor=None, refund=True))
    assert Counter(type(outcome) for outcome in outcomes) == {Revocation: 1, TokenAlreadyRevoked: 19}
    assert balance_of(token.owner).balance == Decimal("18.00")


@pytest.mark.django_db(transaction=True)
def test_without_the_locks_revocations_run_into_each_other(monkeypatch):
    """Negative control: with neither the account nor the token locked, several get past the check.

    What then stops the second refund is the unique posting, so the others fail in another way than they should.
    """
    from tokens.services import access
    from wallet.services import accounts

    together = threading.Barrier(2, timeout=60)

    def read_token(token_id: uuid.UUID) -> AccessToken:
        token = access.find_token(token_id)
        together.wait()
        return token

    monkeypatch.setattr(accounts, "_lock", lambda queryset: list(queryset.order_by("pk")))
    monkeypatch.setattr(revocation, "lock_token", read_token)
    token = token_of_new_user(balance="18.00").token
    outcomes = run_at_once(2, lambda _: revoke_token(token_id=token.id, actor=None, refund=True))
    assert TokenAlreadyRevoked not in {type(outcome) for outcome in outcomes}


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_revocation_against_first_use():
    """Whichever comes first wins whole: a refunded token never becomes usable, a used one is not refunded whole."""
    for _ in range(20):
        token = token_of_new_user(balance="18.00").token
        outcomes = run_at_once(20, partial(_use_or_revoke, token, clock.now() - timedelta(hours=12)))
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds <= {Activation, TokenNotUsable, Revocation, TokenAlreadyRevoked}
        token.refresh_from_db()
        [revoked] = [outcome for outcome in outcomes if isinstance(outcome, Revocation)]
        if token.activated_at is None:
            assert Activation not in kinds
            assert revoked.refund_amount == Decimal("18.00")
        else:
            assert Decimal("8.99") <= revoked.refund_amount <= Decimal("9.00")
        assert balance_of(token.owner).balance == revoked.refund_amount
        assert token.refunded == revoked.refund_amount
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


def _use_or_revoke(token: AccessToken, used_since: datetime, number: int) -> Any:
    if number % 2:
        return activate_token(token_id=token.id, at=used_since)
    return revoke_token(token_id=token.id, actor=None, refund=True)


def while_the_refund_is_computed(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    """Let a revocation stop after it has looked at its token, until somebody else has done something."""
    compute = revocation.refund_due

    def meanwhile(token: AccessToken, at: datetime) -> Decimal:
        run_at_once(1, lambda _: call())
        return compute(token, at)

    monkeypatch.setattr(revocation, "refund_due", meanwhile)


@pytest.mark.django_db(transaction=True)
def test_without_the_lock_a_token_in_use_is_refunded_whole(monkeypatch):
    """The negative control of the race above."""
    token = token_of_new_user(balance="18.00").token
    monkeypatch.setattr(revocation, "lock_token", find_token)
    while_the_refund_is_computed(
        monkeypatch, lambda: activate_token(token_id=token.id, at=clock.now() - timedelta(hours=12))
    )
    revoked = revoke_token(token_id=token.id, actor=None, refund=True)
    token.refresh_from_db()
    assert token.activated_at is not None
    assert revoked.refund_amount == Decimal("18.00")


@pytest.fixture
def a_zinc_a_second(monkeypatch):
    """A day costs 86,400.00, and time stands still until it is moved."""
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal("86400.00"))
    moment = [clock.now()]
    monkeypatch.setattr(clock, "now", lambda: moment[0])
    return moment


def two_seconds_left() -> AccessToken:
    token = token_of_new_user(balance="86400.00").token
    activate_so_that(token, seconds_left=2)
    return token


def expired() -> int:
    return len(events("token.expired"))


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_revocation_against_expiry(a_zinc_a_second):
    """A token ends once: revoked and refunded, or expired and not."""
    for number in range(20):
        token, before = two_seconds_left(), expired()
        outcomes = run_at_once(20, partial(_expire_or_revoke, token, a_zinc_a_second, number / 2000))
        record_expiries()
        assert token.expires_at is not None
        a_zinc_a_second[0] = token.expires_at
        token.refresh_from_db()
        kinds = Counter(type(outcome) for outcome in outcomes if not isinstance(outcome, int))
        if token.revoked_at is not None:
            assert kinds == {Revocation: 1, TokenAlreadyRevoked: kinds[TokenAlreadyRevoked]}
            assert (balance_of(token.owner).balance, expired()) == (Decimal("2.00"), before)
        else:
            assert set(kinds) == {TokenExpired}
            assert (balance_of(token.owner).balance, expired()) == (Decimal("0.00"), before + 1)
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


def _expire_or_revoke(token: AccessToken, moment: list[datetime], delay: float, number: int) -> Any:
    if number == 0:
        threading.Event().wait(delay)
        assert token.expires_at is not None
        moment[0] = token.expires_at
    if number % 4 == 0:
        return record_expiries()
    return revoke_token(token_id=token.id, actor=None, refund=True)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("locked", [True, False])
def test_only_the_lock_keeps_a_token_from_ending_twice(monkeypatch, a_zinc_a_second, locked):
    """The negative control of the race above, and the same with the lock."""
    token = two_seconds_left()
    recorded: list[int] = []

    def expire() -> None:
        assert token.expires_at is not None
        a_zinc_a_second[0] = token.expires_at
        recorded.append(record_expiries())

    if not locked:
        monkeypatch.setattr(revocation, "lock_token", find_token)
    while_the_refund_is_computed(monkeypatch, expire)
    assert revoke_token(token_id=token.id, actor=None, refund=True).refund_amount == Decimal("2.00")
    assert recorded == [0 if locked else 1]
    assert expired() == recorded[0]


@pytest.mark.django_db(transaction=True)
def test_a_token_that_changes_hands_meanwhile_refunds_nobody():
    token = token_of_new_user(balance="18.00").token
    other = user_with("1.00")
    outcomes: list[Any] = []
    with transaction.atomic():
        # Hold the owner's account, so that the revocation waits after it has read the owner.
        Account.objects.select_for_update().get(user=token.owner)
        worker = threading.Thread(
            target=lambda: outcomes.extend(
                run_at_once(1, lambda _: revoke_token(token_id=token.id, actor=None, refund=True))
            )
        )
        worker.start()
        _wait_for_a_blocked_query()
        AccessToken.objects.filter(pk=token.pk).update(owner=other)
    worker.join(60)
    assert [type(outcome) for outcome in outcomes] == [TokenChangedOwner]
    assert not Transfer.objects.filter(kind="REFUND").exists()
    token.refresh_from_db()
    assert token.revoked_at is None


def _wait_for_a_blocked_query() -> None:
    for _ in range(1200):
        with connections["default"].cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if cursor.fetchone() != (0,):
                return
        threading.Event().wait(0.05)
    raise AssertionError("nothing waits for the lock")

"""A token renews itself: a successor of its own, bought once before the end, that goes on with the same secret."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import IntegrityError, transaction

from accounts.services import set_user_active
from tests.factories import UserFactory
from tests.money import activate_so_that, api, leave, renewing_token, staff_client, token_of_new_user, user_with
from tokens import secrets, tasks
from tokens.exceptions import (
    TokenAlreadyRevoked,
    TokenExpired,
    TokenHeld,
    TokenJustRenewed,
    TokenNotFound,
    TokenNotStarted,
)
from tokens.models import AccessToken, PriceChange, RenewalDefault, Scope, TokenPrice
from tokens.selectors import changed_since, check_token, credential_by_digest
from tokens.services import (
    claim_due_renewals,
    claim_gift,
    offer_gift,
    purchase_token,
    record_device_use,
    record_expiries,
    release_device,
    renew_token,
    revocation,
    revoke_token,
    rotate_token,
    set_auto_renew,
    set_renewal_terms,
    stop_renewal,
    take_over_due,
)
from wallet.models import Transfer
from wallet.reconciliation import reconcile
from wallet.selectors import balance_of
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db

HOUR = 3600
ADMIN = "/admin/tokens/accesstoken/"


def events(name: str) -> list[Any]:
    return list(apps.get_model("notifications.OutboxEvent").objects.filter(event=name).order_by("created_at"))


def balance(user: Any) -> Decimal:
    return balance_of(user).balance


def known(moment: datetime | None) -> datetime:
    assert moment is not None
    return moment


def drifts() -> list[str]:
    return [outcome.name for outcome in reconcile() if outcome.drifts]


def successor_of(token: AccessToken) -> AccessToken:
    return AccessToken.objects.get(predecessor=token)


@pytest.fixture
def later(monkeypatch):
    """Move the clock by which business rules go, by so many seconds from now."""
    real = clock.now

    def move(seconds: float) -> datetime:
        moment = real() + timedelta(seconds=seconds)
        monkeypatch.setattr(clock, "now", lambda: moment)
        return moment

    return move


# --- when


@pytest.mark.parametrize(
    ("hours", "lead"),
    [(1, timedelta(minutes=6)), (24, timedelta(hours=2.4)), (240, timedelta(hours=24)), (720, timedelta(hours=24))],
)
def test_due_a_day_or_a_tenth_before_the_end_whichever_is_less(hours, lead):
    if hours == 240:
        TokenPrice.objects.create(duration_hours=240, price=Decimal("120.00"))
    token = renewing_token(hours, seconds_left=lead.total_seconds() + 30).token
    assert token.renew_at == known(token.expires_at) - lead
    assert tasks.renew_tokens() == 0
    assert AccessToken.objects.count() == 1


def test_bought_once_it_is_due_at_the_price_of_that_day():
    bought = renewing_token(24, balance="20.00", seconds_left=2 * HOUR, label="lathe", scope="certificates_only")
    token = bought.token
    PriceChange.objects.create(duration_id=24, price=Decimal("19.50"), effective_at=clock.now())
    assert tasks.renew_tokens() == 1

    token.refresh_from_db()
    successor = successor_of(token)
    assert (successor.owner, successor.label, successor.scope_id) == (token.owner, "lathe", "certificates_only")
    assert (successor.duration_hours, successor.paid, successor.list_price) == (24, Decimal("19.50"), Decimal("19.50"))
    assert (successor.activated_at, successor.expires_at) == (
        token.expires_at,
        known(token.expires_at) + timedelta(hours=24),
    )
    assert (successor.status(), successor.remaining()) == ("scheduled", timedelta(hours=24))
    assert successor.is_usable
    assert (token.renew_at, token.auto_renew, token.status()) == (None, True, "active")
    assert balance(token.owner) == Decimal("0.50")
    posted = Transfer.objects.get(source=f"token:{successor.id}")
    assert (posted.kind, posted.amount) == ("PURCHASE", Decimal("19.50"))
    [event] = events("token.renewed")
    assert event.user == token.owner
    assert event.data == {
        "token_id": str(token.id),
        "successor_id": str(successor.id),
        "starts_at": known(token.expires_at).isoformat(),
        "expires_at": known(successor.expires_at).isoformat(),
        "paid": "19.50",
        "balance": "0.50",
    }
    # The secret stays with the token until its end.
    assert token.digest == secrets.digest(bought.secret)
    assert successor.digest != token.digest
    assert successor.last_four == token.last_four
    assert tasks.renew_tokens() == 0
    assert renew_token(token_id=token.id) is None
    assert AccessToken.objects.count() == 2


def test_the_database_keeps_a_second_successor_out():
    token = renewing_token(seconds_left=HOUR).token
    renew_token(token_id=token.id)
    AccessToken.objects.filter(pk=token.pk).update(renewed_at=None, renew_at=clock.now())
    with pytest.raises(IntegrityError), transaction.atomic():
        renew_token(token_id=token.id)
    assert AccessToken.objects.count() == 2
    assert balance(token.owner) == Decimal("82.00")


def test_only_what_is_switched_on_and_running_is_renewed():
    off = token_of_new_user().token
    activate_so_that(off, seconds_left=60)
    unused = token_of_new_user().token
    set_auto_renew(token_id=unused.id, owner=unused.owner, enabled=True)
    stopped = renewing_token(seconds_left=60).token
    set_auto_renew(token_id=stopped.id, owner=stopped.owner, enabled=False)
    revoked = renewing_token(seconds_left=60).token
    revoke_token(token_id=revoked.id, actor=None, refund=False)
    assert tasks.renew_tokens() == 0
    for token in (off, unused, stopped, revoked):
        assert renew_token(token_id=token.id) is None
    assert AccessToken.objects.count() == 4
    assert events("renewal.failed") == []


@pytest.mark.django_db(transaction=True)
def test_the_referrer_is_awarded_for_a_renewal():
    referrer = user_with()
    owner = user_with("400.00", referred_by=referrer)
    token = purchase_token(owner=owner, duration_hours=168).token  # 100.00 is not over 100.00
    assert balance(referrer) == Decimal("0.00")
    PriceChange.objects.create(duration_id=168, price=Decimal("150.00"), effective_at=clock.now())
    set_auto_renew(token_id=token.id, owner=owner, enabled=True)
    activate_so_that(token, seconds_left=HOUR)
    tasks.renew_tokens()
    assert balance(referrer) == Decimal("15.00")

    # Taking back the running one takes back both, and the bonus with them.
    revocation_ = revoke_token(token_id=token.id, actor=owner, owner=owner, refund=True)
    assert balance(referrer) == Decimal("0.00")
    assert revocation_.refund_amount == Decimal("150.00") + Decimal("0.59")
    assert drifts() == []


# --- what keeps it from happening


def drain(token: AccessToken) -> None:
    leave(token.owner, "17.99")


def stop_selling_the_duration(token: AccessToken) -> None:
    TokenPrice.objects.filter(duration_hours=24).update(is_active=False)


def stop_selling_the_scope(token: AccessToken) -> None:
    Scope.objects.filter(slug="full").update(is_active=False)


def disable(token: AccessToken) -> None:
    set_user_active(user_id=token.owner_id, active=False, actor=None, reason="test")


def cap(token: AccessToken) -> None:
    set_renewal_terms(user=token.owner, enabled=False, duration_hours=None, scope=None, daily_cap=Decimal("17.99"))


@pytest.mark.parametrize(
    ("hinder", "reason"),
    [
        (drain, "insufficient_balance"),
        (stop_selling_the_duration, "duration_not_sold"),
        (stop_selling_the_scope, "scope_not_sold"),
        (disable, "owner_disabled"),
        (cap, "daily_cap_reached"),
    ],
)
def test_paused_with_one_notice_and_nothing_taken(hinder, reason):
    token = renewing_token(seconds_left=HOUR).token
    hinder(token)
    before = balance(token.owner), Transfer.objects.count()
    for _ in range(2):
        assert tasks.renew_tokens() == 0
    assert (balance(token.owner), Transfer.objects.count()) == before
    assert AccessToken.objects.count() == 1
    token.refresh_from_db()
    assert (token.auto_renew, token.renewal_paused, token.renew_at) == (True, reason, None)
    [event] = events("renewal.failed")
    assert event.user == token.owner
    assert event.data == {
        "token_id": str(token.id),
        "reason": reason,
        "expires_at": known(token.expires_at).isoformat(),
    }


def test_who_owes_is_told_so():
    token = renewing_token(seconds_left=HOUR).token
    leave(token.owner, "0.00")
    account = apps.get_model("wallet.Account").objects
    account.filter(user=token.owner).update(owed=Decimal("1.00"))
    tasks.renew_tokens()
    token.refresh_from_db()
    assert token.renewal_paused == "debt_outstanding"


def test_switched_on_again_it_is_tried_at_once():
    token = renewing_token(seconds_left=HOUR, balance="10.00").token
    tasks.renew_tokens()
    leave(token.owner, "18.00")
    assert tasks.renew_tokens() == 0
    answer = api(token.owner).patch(f"/api/v1/tokens/{token.id}", {"auto_renew": True}, format="json").json()
    assert (answer["auto_renew"], answer["renewal"]["status"]) == (True, "renewed")
    assert answer["renewal"]["renewed_by"] == str(successor_of(token).id)
    assert balance(token.owner) == Decimal("0.00")
    assert len(events("renewal.failed")) == 1


def test_switched_on_again_without_balance_is_one_more_notice():
    token = renewing_token(seconds_left=HOUR, balance="10.00").token
    tasks.renew_tokens()
    answer = api(token.owner).patch(f"/api/v1/tokens/{token.id}", {"auto_renew": True}, format="json").json()
    assert answer["renewal"] == {
        "status": "paused",
        "due_at": None,
        "paused_reason": "insufficient_balance",
        "renewed_by": None,
    }
    assert len(events("renewal.failed")) == 2
    assert balance(token.owner) == Decimal("10.00")


def test_an_end_that_nobody_noticed_in_time_is_still_renewed_from_then_on():
    """Nobody pays for the minutes in which nobody was served."""
    bought = renewing_token(seconds_left=-60)
    assert tasks.renew_tokens() == 1
    successor = successor_of(bought.token)
    assert successor.status() == "active"
    assert clock.now() - known(successor.activated_at) < timedelta(seconds=30)
    assert known(successor.expires_at) - known(successor.activated_at) == timedelta(hours=24)
    assert successor.digest == secrets.digest(bought.secret)
    assert check_token(bought.secret) == successor


def test_an_end_long_ago_is_not():
    token = renewing_token(1, seconds_left=-6 * 60 - 1).token
    assert tasks.renew_tokens() == 0
    token.refresh_from_db()
    assert token.renewal_paused == "token_expired"
    assert balance(token.owner) == Decimal("100.00")
    assert len(events("renewal.failed")) == 1


# --- the daily cap


def test_the_cap_counts_all_renewals_of_the_day(settings, monkeypatch):
    noon = datetime(2027, 3, 10, 12, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: noon)
    settings.RENEWAL_DAILY_CAP = Decimal("36.00")
    first = renewing_token(seconds_left=HOUR)
    owner = first.token.owner
    others = []
    for _ in range(2):
        token = purchase_token(owner=owner, duration_hours=24).token
        set_auto_renew(token_id=token.id, owner=owner, enabled=True)
        activate_so_that(token, seconds_left=HOUR)
        others.append(token)
    leave(owner, "100.00")
    assert tasks.renew_tokens() == 2
    assert balance(owner) == Decimal("64.00")
    [paused] = AccessToken.objects.exclude(renewal_paused="")
    assert paused.renewal_paused == "daily_cap_reached"

    # The owner's own cap takes the platform's place.
    set_renewal_terms(user=owner, enabled=False, duration_hours=None, scope=None, daily_cap=Decimal("53.99"))
    set_auto_renew(token_id=paused.id, owner=owner, enabled=True)
    assert balance(owner) == Decimal("64.00")
    set_renewal_terms(user=owner, enabled=False, duration_hours=None, scope=None, daily_cap=Decimal("54.00"))
    set_auto_renew(token_id=paused.id, owner=owner, enabled=True)
    assert balance(owner) == Decimal("46.00")


def test_the_cap_starts_anew_at_midnight(settings, monkeypatch):
    settings.RENEWAL_DAILY_CAP = Decimal("18.00")
    evening = datetime(2027, 3, 10, 23, 59, 59, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: evening)
    token = renewing_token(seconds_left=HOUR).token
    other = purchase_token(owner=token.owner, duration_hours=24).token
    set_auto_renew(token_id=other.id, owner=token.owner, enabled=True)
    activate_so_that(other, seconds_left=HOUR)
    assert renew_token(token_id=token.id) is not None
    monkeypatch.setattr(clock, "now", lambda: evening + timedelta(seconds=1))
    assert renew_token(token_id=other.id) is not None


# --- taking over


def test_at_the_end_the_secret_means_the_successor(later):
    bought = renewing_token(seconds_left=HOUR)
    token = bought.token
    record_device_use([(token.id, "device-one", clock.now())])
    renew_token(token_id=token.id)
    successor = successor_of(token)
    assert check_token(bought.secret) == token
    assert take_over_due() == 0

    later(HOUR + 1)
    assert check_token(bought.secret) == successor
    credential = credential_by_digest(secrets.digest(bought.secret))
    assert credential is not None and credential.successor is not None
    assert (credential.token_id, credential.successor.token_id) == (token.id, successor.id)
    assert credential.successor.activated_at == credential.expires_at
    assert events("token.activated") == events("token.activated")[:1]

    assert tasks.take_over() == 1
    assert tasks.take_over() == 0
    token.refresh_from_db()
    successor.refresh_from_db()
    assert successor.digest == secrets.digest(bought.secret)
    assert token.digest not in {successor.digest, ""}
    assert (successor.device_id, successor.status()) == ("device-one", "active")
    assert token.status() == "expired"
    credential = credential_by_digest(secrets.digest(bought.secret))
    assert credential is not None and (credential.token_id, credential.successor) == (successor.id, None)
    event = events("token.activated")[-1]
    assert event.data == {
        "token_id": str(successor.id),
        "activated_at": known(successor.activated_at).isoformat(),
        "expires_at": known(successor.expires_at).isoformat(),
        "renews": str(token.id),
    }
    assert record_expiries() == 1
    assert events("token.expired")[0].data["renewed_by"] == str(successor.id)


def test_a_device_that_the_successor_has_seen_stays(later):
    token = renewing_token(seconds_left=HOUR).token
    record_device_use([(token.id, "device-one", clock.now())])
    renew_token(token_id=token.id)
    successor = successor_of(token)
    moment = later(HOUR + 1)
    record_device_use([(successor.id, "device-two", moment)])
    take_over_due()
    successor.refresh_from_db()
    assert (successor.device_id, successor.device_seen_at) == ("device-two", moment)


def test_chains_go_on_although_nobody_wrote_down_the_first_step(later):
    bought = renewing_token(seconds_left=HOUR)
    renew_token(token_id=bought.token.id)
    second = successor_of(bought.token)
    later(HOUR + 23 * HOUR)
    assert tasks.renew_tokens() == 1
    second.refresh_from_db()
    assert second.digest == secrets.digest(bought.secret)
    later(HOUR + 24 * HOUR + 1)
    assert check_token(bought.secret) == successor_of(second)


def test_the_tombstone_of_a_revoked_successor_is_none_of_its_predecessors():
    bought = renewing_token(seconds_left=HOUR)
    renew_token(token_id=bought.token.id)
    changed = {row.digest: row.revoked for row in changed_since(clock.now() - timedelta(minutes=1))}
    assert changed[secrets.digest(bought.secret)] is False
    successor = successor_of(bought.token)
    revoke_token(token_id=successor.id, actor=None, refund=True)
    changed = {row.digest: row.revoked for row in changed_since(clock.now() - timedelta(minutes=1))}
    assert changed[secrets.digest(bought.secret)] is False
    assert changed[successor.digest] is True


# --- what the owner does with the two


def test_a_new_secret_of_the_token_is_the_successors_too(later):
    bought = renewing_token(seconds_left=HOUR)
    token = bought.token
    renew_token(token_id=token.id)
    rotated = rotate_token(token_id=token.id, owner=token.owner)
    assert successor_of(token).hint == rotated.token.hint
    assert check_token(bought.secret) is None
    later(HOUR + 1)
    assert check_token(rotated.secret) == successor_of(token)
    again = rotate_token(token_id=successor_of(token).id, owner=token.owner)
    assert check_token(rotated.secret) is None
    assert check_token(again.secret) == successor_of(token)
    with pytest.raises(TokenExpired):
        rotate_token(token_id=token.id, owner=token.owner)


def test_a_successor_has_no_secret_to_replace_before_its_time():
    token = renewing_token(seconds_left=HOUR).token
    renew_token(token_id=token.id)
    before = list(AccessToken.objects.values())
    with pytest.raises(TokenNotStarted):
        rotate_token(token_id=successor_of(token).id, owner=token.owner)
    assert list(AccessToken.objects.values()) == before


def test_revoking_a_successor_before_its_time_pays_all_of_it_back(later):
    bought = renewing_token(seconds_left=HOUR)
    token = bought.token
    renew_token(token_id=token.id)
    successor = successor_of(token)
    outcome = revoke_token(token_id=successor.id, actor=token.owner, owner=token.owner, refund=True)
    assert (outcome.refund_amount, outcome.balance) == (Decimal("18.00"), Decimal("100.00"))
    token.refresh_from_db()
    assert (token.status(), token.auto_renew) == ("active", False)
    credential = credential_by_digest(token.digest)
    assert credential is not None and credential.successor is None
    assert tasks.renew_tokens() == 0
    later(HOUR + 1)
    assert tasks.take_over() == 0
    found = check_token(bought.secret)
    assert found == token and found.status() == "expired"


def test_revoking_a_running_successor_pays_back_what_is_unused(later):
    bought = renewing_token(seconds_left=HOUR)
    renew_token(token_id=bought.token.id)
    later(HOUR + 12 * HOUR)
    successor = successor_of(bought.token)
    outcome = revoke_token(token_id=successor.id, actor=None, refund=True)
    assert Decimal("8.99") <= outcome.refund_amount <= Decimal("9.00")
    found = check_token(bought.secret)
    assert found == successor and found.status() == "revoked"


def test_revoking_the_token_revokes_what_would_go_on_with_its_secret():
    token = renewing_token(seconds_left=2 * HOUR).token
    renew_token(token_id=token.id)
    outcome = revoke_token(token_id=token.id, actor=token.owner, owner=token.owner, refund=True, reason="owner")
    successor = successor_of(token)
    assert (successor.status(), successor.refunded) == ("revoked", Decimal("18.00"))
    assert outcome.token.refunded == Decimal("1.49")
    assert outcome.refund_amount == Decimal("19.49")
    assert balance(token.owner) == Decimal("101.49")
    assert [event.data["token_id"] for event in events("token.revoked")] == [str(token.id), str(successor.id)]
    with pytest.raises(TokenAlreadyRevoked):
        revoke_token(token_id=successor.id, actor=None, refund=True)


def test_without_a_refund_both_go_without():
    token = renewing_token(seconds_left=HOUR).token
    renew_token(token_id=token.id)
    assert revoke_token(token_id=token.id, actor=None, refund=False).refund_amount == Decimal("0.00")
    assert {one.status() for one in AccessToken.objects.all()} == {"revoked"}
    assert balance(token.owner) == Decimal("82.00")


def test_a_successor_bought_while_the_revocation_waited(monkeypatch):
    token = renewing_token(seconds_left=HOUR).token
    lock = revocation.lock_token

    def bought_meanwhile(token_id: Any) -> AccessToken:
        renew_token(token_id=token_id)
        return lock(token_id)

    monkeypatch.setattr(revocation, "lock_token", bought_meanwhile)
    with pytest.raises(TokenJustRenewed):
        revoke_token(token_id=token.id, actor=None, refund=True)
    assert not AccessToken.objects.filter(revoked_at__isnull=False).exists()
    assert not Transfer.objects.filter(kind="REFUND").exists()


def test_releasing_the_device_of_a_successor_takes_over_first(later):
    bought = renewing_token(seconds_left=HOUR)
    token = bought.token
    record_device_use([(token.id, "device-one", clock.now())])
    renew_token(token_id=token.id)
    later(HOUR + 1)
    released = release_device(token_id=successor_of(token).id, owner=token.owner)
    assert released.device_id == ""
    assert released.digest == secrets.digest(bought.secret)


# --- switching


def test_the_owner_switches():
    bought = token_of_new_user()
    token, client = bought.token, api(bought.token.owner)
    url = f"/api/v1/tokens/{token.id}"
    on = client.patch(url, {"auto_renew": True}, format="json").json()
    assert (on["auto_renew"], on["renewal"]["status"], on["renewal"]["due_at"]) == (True, "waiting", None)
    activate_so_that(token, seconds_left=20 * HOUR)
    token.refresh_from_db()
    shown = client.get(url).json()["renewal"]["due_at"]
    assert datetime.fromisoformat(shown) == known(token.expires_at) - timedelta(hours=2.4)
    off = client.patch(url, {"auto_renew": False, "label": "x"}, format="json").json()
    assert (off["auto_renew"], off["renewal"]["status"], off["label"]) == (False, "off", "x")
    again = client.patch(url, {"auto_renew": True}, format="json").json()
    assert again["renewal"]["due_at"] == shown
    assert client.patch(url, {"label": "y"}, format="json").json()["auto_renew"] is True
    for refused in ("perhaps", None, 7):
        assert client.patch(url, {"auto_renew": refused}, format="json").status_code == 400


def test_lists_show_both_and_how_they_belong_together():
    token = renewing_token(seconds_left=HOUR).token
    renew_token(token_id=token.id)
    successor = successor_of(token)
    listed = api(token.owner).get("/api/v1/tokens/my-tokens").json()["items"]
    rows = {row["id"]: row for row in listed}
    assert rows[str(token.id)]["renewal"]["renewed_by"] == str(successor.id)
    row = rows[str(successor.id)]
    assert (row["status"], row["renews"], row["is_active"]) == ("scheduled", str(token.id), True)
    assert (row["time_remaining_seconds"], row["cost_znc"]) == (24 * HOUR, "18.00")


def test_switching_on_again_after_the_renewal_changes_nothing():
    token = renewing_token(seconds_left=HOUR).token
    renew_token(token_id=token.id)
    assert set_auto_renew(token_id=token.id, owner=token.owner, enabled=True).renew_at is None
    assert AccessToken.objects.count() == 2


def test_what_has_ended_is_not_switched_on():
    expired = token_of_new_user().token
    activate_so_that(expired, seconds_left=-1)
    revoked = token_of_new_user().token
    revoke_token(token_id=revoked.id, actor=None, refund=True)
    before = list(AccessToken.objects.order_by("pk").values())
    with pytest.raises(TokenExpired):
        set_auto_renew(token_id=expired.id, owner=expired.owner, enabled=True)
    with pytest.raises(TokenAlreadyRevoked):
        set_auto_renew(token_id=revoked.id, owner=revoked.owner, enabled=True)
    with pytest.raises(TokenNotFound):
        set_auto_renew(token_id=expired.id, owner=UserFactory(), enabled=True)
    assert list(AccessToken.objects.order_by("pk").values()) == before


# --- the account's default

TERMS = "/api/v1/users/me/auto-renewal"


def test_the_default_before_anything_is_set():
    assert api(user_with()).get(TERMS).json() == {
        "auto_renew_enabled": False,
        "auto_renew_duration_hours": None,
        "auto_renew_scope": None,
        "daily_cap": None,
        "cost_per_renewal": None,
    }


def test_the_default_holds_for_what_is_bought_from_now_on():
    user = user_with("500.00")
    before = purchase_token(owner=user, duration_hours=24).token
    body = {"enabled": True, "duration_hours": 24, "scope": "full", "daily_cap": "50.00"}
    assert api(user).put(TERMS, body, format="json").json() == {
        "auto_renew_enabled": True,
        "auto_renew_duration_hours": 24,
        "auto_renew_scope": "full",
        "daily_cap": "50.00",
        "cost_per_renewal": "18.00",
    }
    bought = {
        (hours, scope): purchase_token(owner=user, duration_hours=hours, scope=scope).token.auto_renew
        for hours, scope in [(24, "full"), (1, "full"), (24, "certificates_only")]
    }
    assert bought == {(24, "full"): True, (1, "full"): False, (24, "certificates_only"): False}
    before.refresh_from_db()
    assert before.auto_renew is False
    assert purchase_token(owner=user_with("20.00"), duration_hours=24).token.auto_renew is False

    # Null stands for any; the cap is kept unless it is named.
    shown = api(user).put(TERMS, {"enabled": True}, format="json").json()
    assert (shown["auto_renew_duration_hours"], shown["cost_per_renewal"], shown["daily_cap"]) == (None, None, "50.00")
    assert purchase_token(owner=user, duration_hours=1, scope="certificates_only").token.auto_renew is True
    assert api(user).put(TERMS, {"enabled": False, "daily_cap": None}, format="json").json()["daily_cap"] is None
    assert purchase_token(owner=user, duration_hours=1).token.auto_renew is False
    assert str(RenewalDefault.objects.get()) == user.username


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_error"),
        ({"enabled": True, "duration_hours": 5}, "duration_not_sold"),
        ({"enabled": True, "scope": "nothing"}, "scope_not_sold"),
        ({"enabled": True, "daily_cap": "0.00"}, "validation_error"),
        ({"enabled": True, "daily_cap": "1.001"}, "validation_error"),
        ({"enabled": True, "duration_hours": "x"}, "validation_error"),
    ],
)
def test_a_default_that_cannot_be_is_refused(body, code):
    answer = api(user_with()).put(TERMS, body, format="json")
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert not RenewalDefault.objects.exists()


def test_the_default_is_nobody_elses():
    assert api().get(TERMS).status_code == api().put(TERMS, {"enabled": True}, format="json").status_code == 401


# --- the back office


def staff(*permissions: str) -> Any:
    user = user_with(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_accesstoken", *permissions]))
    return staff_client(user)


def test_staff_switch_a_renewal_off_with_a_reason():
    token = renewing_token(seconds_left=20 * HOUR).token
    off = token_of_new_user().token
    client = staff("stop_renewal")
    body = {"action": "stop_renewal", "_selected_action": [str(token.pk), str(off.pk)]}
    asked = client.post(ADMIN, body)
    assert token.hint in asked.content.decode()
    assert "errorlist" in client.post(ADMIN, {**body, "confirm": "yes", "reason": ""}).content.decode()
    token.refresh_from_db()
    assert token.auto_renew is True
    page = client.post(ADMIN, {**body, "confirm": "yes", "reason": "asked by phone"}, follow=True).content.decode()
    assert "The renewal of 1 token was switched off." in page
    token.refresh_from_db()
    assert (token.auto_renew, token.renew_at) == (False, None)
    [event] = events("renewal.stopped")
    assert (event.user, event.data["reason"]) == (token.owner, "asked by phone")
    assert "asked by phone" in LogEntry.objects.get().change_message
    assert client.get(f"{ADMIN}{token.pk}/change/").status_code == 200


def test_switching_off_has_its_own_permission():
    token = renewing_token(seconds_left=20 * HOUR).token
    body = {"action": "stop_renewal", "_selected_action": [str(token.pk)], "confirm": "yes", "reason": "r"}
    staff("revoke_with_refund").post(ADMIN, body, follow=True)
    token.refresh_from_db()
    assert token.auto_renew is True
    actor = user_with(is_staff=True)
    assert stop_renewal(token_id=token.id, actor=actor, reason="r") is True
    assert stop_renewal(token_id=token.id, actor=actor, reason="r") is False


def test_defaults_are_looked_at_only():
    set_renewal_terms(user=user_with(), enabled=True, duration_hours=None, scope=None)
    client = staff_client(user_with(is_staff=True, is_superuser=True))
    pk = RenewalDefault.objects.get().pk
    url = "/admin/tokens/renewaldefault/"
    assert client.get(url).status_code == client.get(f"{url}{pk}/change/").status_code == 200
    assert client.post(f"{url}{pk}/change/", {"enabled": ""}).status_code == 403


# --- claims


def test_a_claimed_row_is_left_alone_until_the_claim_is_over(later):
    token = renewing_token(seconds_left=HOUR).token
    assert claim_due_renewals() == [token.id]
    assert claim_due_renewals() == []
    later(121)
    assert claim_due_renewals() == [token.id]
    assert renew_token(token_id=token.id) is not None


def test_a_claim_takes_as_many_as_asked_the_most_urgent_first():
    second = renewing_token(seconds_left=HOUR).token
    first = renewing_token(seconds_left=HOUR / 2).token
    assert claim_due_renewals(limit=1) == [first.id]
    assert claim_due_renewals(limit=1) == [second.id]


@pytest.mark.django_db(transaction=True)
def test_a_successor_that_begins_too_early_is_drift():
    token = renewing_token(seconds_left=HOUR).token
    renew_token(token_id=token.id)
    assert drifts() == []
    AccessToken.objects.filter(predecessor=token).update(activated_at=clock.now())
    assert drifts() == ["a successor goes on where its predecessor ends, for the same owner"]


# --- gifts


def test_who_claims_a_gift_pays_for_no_renewal_that_the_giver_wanted():
    token = token_of_new_user().token
    set_auto_renew(token_id=token.id, owner=token.owner, enabled=True)
    offered = offer_gift(token_id=token.id, giver=token.owner)
    with pytest.raises(TokenHeld):
        set_auto_renew(token_id=token.id, owner=token.owner, enabled=True)
    claimed = claim_gift(code=offered.code, claimer=user_with()).token
    assert claimed.auto_renew is False


@pytest.mark.django_db(transaction=True)
def test_a_gift_that_was_renewed_refunds_each_token_to_whoever_paid_for_it():
    token = token_of_new_user().token
    giver, claimer = token.owner, user_with("18.00")
    offered = offer_gift(token_id=token.id, giver=giver)
    claim_gift(code=offered.code, claimer=claimer)
    set_auto_renew(token_id=token.id, owner=claimer, enabled=True)
    activate_so_that(token, seconds_left=2 * HOUR)
    assert renew_token(token_id=token.id) is not None
    before = balance(giver)
    outcome = revoke_token(token_id=token.id, actor=claimer, owner=claimer, refund=True)
    assert (outcome.refund_amount, outcome.received) == (Decimal("19.49"), Decimal("18.00"))
    assert (balance(giver) - before, balance(claimer)) == (Decimal("1.49"), Decimal("18.00"))
    assert drifts() == []

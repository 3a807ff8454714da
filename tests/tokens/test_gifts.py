"""Giving tokens away: POST /tokens/{id}/gift, GET /gifts, POST /gifts/{code}/claim, DELETE /gifts/{id}."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.db.utils import DatabaseError, IntegrityError
from django.test.utils import CaptureQueriesContext

from referrals.models import ReferralBonus
from tests.api import Api
from tests.money import activate_so_that, user_with
from tests.redis_server import own_redis  # noqa: F401 - a fixture
from tests.tokens.gifts import events, offered, state
from tokens import gift_codes, secrets, tasks
from tokens.exceptions import (
    GiftAlreadyClaimed,
    GiftCancelled,
    GiftExpired,
    GiftNotAwaiting,
    GiftNotFound,
    GiftUnavailable,
    OwnGift,
    TokenHeld,
    TokenNotUsable,
)
from tokens.models import AccessToken, Gift, RotatedDigest
from tokens.selectors import changed_since, check_token, credential_by_digest
from tokens.services import (
    activate_token,
    approve_gift,
    cancel_gift,
    claim_gift,
    offer_gift,
    purchase_token,
    record_device_use,
    reject_gift,
    return_expired_gifts,
    revoke_token,
    rotate_token,
    update_token,
)
from tokens.signals import credentials_changed, device_released
from wallet import reconciliation
from wallet.models import Transfer
from wallet.selectors import balance_of
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


@pytest.fixture
def giver() -> Any:
    return user_with("1000.00")


@pytest.fixture
def friend() -> Any:
    return user_with()


@pytest.fixture
def told():
    """What ``credentials_changed`` and ``device_released`` were sent with."""
    calls: list[dict[str, Any]] = []

    def receive(**arguments: Any) -> None:
        calls.append({name: arguments[name] for name in arguments if name in {"digests", "token_ids", "revoked"}})

    def released(**arguments: Any) -> None:
        calls.append({"token_id": arguments["token_id"]})

    credentials_changed.connect(receive)
    device_released.connect(released)
    yield calls
    credentials_changed.disconnect(receive)
    device_released.disconnect(released)


@pytest.fixture
def later(monkeypatch):
    """Moves our clock on from now."""

    def move(**by: float) -> datetime:
        moment = clock.now() + timedelta(**by)
        monkeypatch.setattr(clock, "now", lambda: moment)
        return moment

    return move


# --- offering


def test_a_token_is_offered(giver, told, django_capture_on_commit_callbacks):
    bought = purchase_token(owner=giver, duration_hours=24)
    api = Api(giver)
    before = clock.now()
    with django_capture_on_commit_callbacks(execute=True):
        answer = api.post(
            f"tokens/{bought.token.pk}/gift",
            {"message": "Enjoy\nit", "recipient_email": "friend@example.com"},
            status=201,
        )
        assert told == []

    assert api.last["Cache-Control"] == "no-store"
    assert re.fullmatch(r"GIFT(-[0-9A-Z]{4}){4}", answer["code"])
    gift = Gift.objects.get()
    assert answer == {
        "id": str(gift.pk),
        "code": answer["code"],
        "direction": "sent",
        "status": "pending",
        "code_hint": f"GIFT-…{answer['code'][-4:]}",
        "token_id": str(bought.token.pk),
        "duration_hours": 24,
        "scope": "full",
        "giver": answer["giver"],
        "claimed_by": None,
        "recipient_email": "friend@example.com",
        "message": "Enjoy\nit",
        "created_at": answer["created_at"],
        "expires_at": answer["expires_at"],
        "closed_at": None,
    }
    assert gift.expires_at is not None
    assert gift.expires_at - gift.created_at == timedelta(days=14)
    # Nothing in the database says the code.
    assert answer["code"] not in repr(Gift.objects.values())
    assert gift.code_digest == gift_codes.digest(gift_codes.canonical(answer["code"]) or "")
    token = AccessToken.objects.get()
    assert (token.status(), token.is_usable, token.held_at is not None) == ("gifted", False, True)
    assert told == [{"digests": [token.digest], "token_ids": [token.id], "revoked": False}]
    assert (token.id, token.digest, False) in {(c.token_id, c.digest, c.revoked) for c in changed_since(before)}
    [event] = events("gift.created")
    assert event.user == giver
    assert event.data == {"gift_id": str(gift.pk), "token_id": str(token.pk), "status": "pending"}


def test_neither_a_name_nor_a_repr_shows_a_code(giver, friend):
    gift = offered(giver)
    assert gift.code not in repr(gift)
    assert str(gift.gift) == f"GIFT-…{gift.code[-4:]}"
    claimed = claim_gift(code=gift.code, claimer=friend)
    assert claimed.secret not in repr(claimed)


def test_a_held_token_is_shown_as_one_and_opens_nothing(giver):
    bought = purchase_token(owner=giver, duration_hours=24)
    offer_gift(token_id=bought.token.pk, giver=giver)
    api = Api(giver)
    [listed] = api.get("tokens/my-tokens")["items"]
    assert (listed["status"], listed["is_active"]) == ("gifted", False)
    checked = api.post("tokens/check", {"token": bought.secret})
    assert (checked["valid"], checked["status"]) == (False, "gifted")
    credential = credential_by_digest(secrets.digest(bought.secret))
    assert credential is not None
    assert (credential.held, credential.revoked) == (True, False)


def test_a_held_token_stays_as_it_is(giver):
    gift = offered(giver).gift
    before = state()
    api, url = Api(giver), f"tokens/{gift.token_id}"
    api.post(f"{url}/gift", status=409, code="token_held")
    api.post(f"{url}/rotate", status=409, code="token_held")
    api.patch(url, {"label": "x"}, status=409, code="token_held")
    api.delete(url, status=409, code="token_held")
    for refund in (True, False):
        with pytest.raises(TokenHeld):
            revoke_token(token_id=gift.token_id, actor=None, refund=refund)
    with pytest.raises(TokenHeld):
        rotate_token(token_id=gift.token_id, owner=giver)
    with pytest.raises(TokenHeld):
        update_token(token_id=gift.token_id, owner=giver, label="x")
    with pytest.raises(TokenNotUsable):
        activate_token(token_id=gift.token_id, at=clock.now())
    assert state() == before


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda token: activate_so_that(token, seconds_left=60), "token_activated"),
        (lambda token: activate_so_that(token, seconds_left=-1), "token_expired"),
        (lambda token: revoke_token(token_id=token.pk, actor=None, refund=True), "token_already_revoked"),
    ],
)
def test_only_a_token_that_was_never_used_is_offered(giver, spoil, code):
    token = purchase_token(owner=giver, duration_hours=24).token
    spoil(token)
    before = state()
    Api(giver).post(f"tokens/{token.pk}/gift", status=409, code=code)
    assert state() == before


def test_the_token_of_another_is_not_offered(giver, friend):
    token = purchase_token(owner=giver, duration_hours=24).token
    before = state()
    for token_id in (token.pk, uuid.uuid4()):
        Api(friend).post(f"tokens/{token_id}/gift", status=404, code="not_found")
    assert state() == before


def test_nobody_gives_to_themselves(giver):
    token = purchase_token(owner=giver, duration_hours=24).token
    before = state()
    answer = Api(giver).post(
        f"tokens/{token.pk}/gift", {"recipient_email": giver.email.upper()}, status=400, code="gift_to_self"
    )
    assert list(answer["errors"]) == ["recipient_email"]
    assert state() == before


@pytest.mark.parametrize(
    "body",
    [{"recipient_email": "nobody"}, {"recipient_email": 5}, {"message": "x" * 501}, {"message": None}],
)
def test_a_malformed_gift(giver, body):
    token = purchase_token(owner=giver, duration_hours=24).token
    before = state()
    answer = Api(giver).post(f"tokens/{token.pk}/gift", body, status=400, code="validation_error")
    assert list(answer["errors"]) == list(body)
    assert state() == before


def test_a_lost_answer_can_be_had_again_with_the_same_key(giver):
    token = purchase_token(owner=giver, duration_hours=24).token
    api = Api(giver)
    first, second = (
        api.post(f"tokens/{token.pk}/gift", status=201, headers={"Idempotency-Key": "k"}) for _ in range(2)
    )
    assert first == second
    assert api.last["Idempotent-Replayed"] == "true"
    assert Gift.objects.count() == 1


def test_the_eleventh_gift_of_a_day_is_refused(giver, later):
    for _ in range(9):
        offered(giver)
    cancelled = offered(giver).gift
    cancel_gift(gift_id=cancelled.pk, giver=giver)
    api, url = Api(giver), f"tokens/{cancelled.token_id}/gift"
    before = state()
    api.post(url, status=429, code="gift_limit_reached")
    assert 86_000 < int(api.last["Retry-After"]) <= 86_400
    assert state() == before
    # Another user's day is another's.
    offered()
    first = Gift.objects.filter(giver=giver).earliest("created_at")
    later(seconds=(first.created_at + timedelta(days=1) - clock.now()).total_seconds())
    offer_gift(token_id=cancelled.token_id, giver=giver)


@pytest.mark.django_db(transaction=True)
def test_the_limits_follow_the_settings(giver, settings):
    settings.GIFTS_PER_DAY, settings.GIFT_VALID_DAYS, settings.GIFT_APPROVAL_ABOVE_HOURS = 1, 2, 0
    gift = offered(giver, duration_hours=1).gift
    assert gift.status == Gift.Status.AWAITING_APPROVAL
    approved = approve_gift(gift_id=gift.pk, actor=user_with(), reason="r")
    assert approved.expires_at is not None
    assert timedelta(days=2) <= approved.expires_at - gift.created_at < timedelta(days=2, minutes=1)
    token = purchase_token(owner=giver, duration_hours=1).token
    Api(giver).post(f"tokens/{token.pk}/gift", status=429, code="gift_limit_reached")


# --- claiming


def test_a_gift_is_claimed(giver, friend, told, django_capture_on_commit_callbacks):
    bought = purchase_token(owner=giver, duration_hours=24, label="mine")
    record_device_use([(bought.token.pk, "device-of-giver", clock.now())])
    gift = offer_gift(token_id=bought.token.pk, giver=giver)
    old_digest = bought.token.digest
    api = Api(friend)
    started = clock.now()
    with django_capture_on_commit_callbacks(execute=True):
        answer = api.post(f"gifts/{gift.code.lower().replace('-', '')}/claim")

    assert api.last["Cache-Control"] == "no-store"
    secret = answer["token"]
    assert secrets.is_well_formed(secret)
    assert secret != bought.secret
    assert answer["id"] == str(bought.token.pk)
    assert (answer["status"], answer["label"], answer["device"], answer["cost_znc"]) == ("ready", "", None, "18.00")
    token = AccessToken.objects.get()
    assert (token.owner, token.payer, token.paid, token.held_at) == (friend, giver, Decimal("18.00"), None)
    assert (token.device_id, token.digest) == ("", secrets.digest(secret))
    assert credential_by_digest(old_digest) is None
    known = check_token(secret)
    assert known is not None and known.is_usable
    assert told[-2:] == [
        {"digests": [old_digest], "token_ids": [token.id], "revoked": False},
        {"token_id": token.id},
    ]
    assert {change.digest for change in changed_since(started)} >= {old_digest, token.digest}
    closed = Gift.objects.get()
    assert (closed.status, closed.claimed_by, closed.closed_at is not None) == ("claimed", friend, True)
    assert Counter(event.user.pk for event in events("gift.claimed")) == {giver.pk: 1, friend.pk: 1}
    assert all(secret not in str(event.data) and gift.code not in str(event.data) for event in events("gift.claimed"))
    assert Api(giver).get("tokens/my-tokens", {"active_only": "false"})["total"] == 0
    Api(giver).get(f"tokens/{token.pk}", status=404)
    assert api.get("tokens/my-tokens")["total"] == 1


def test_a_lost_claim_can_be_had_again_with_the_same_key(friend):
    gift = offered()
    api = Api(friend)
    first, second = (api.post(f"gifts/{gift.code}/claim", headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first["token"] == second["token"]
    assert RotatedDigest.objects.count() == 1


def refused_claim(code: str, user: Any, status: int, error: str) -> None:
    before = state()
    Api(user).post(f"gifts/{code}/claim", status=status, code=error)
    assert state() == before


def test_neither_the_giver_nor_a_second_friend_claims(giver, friend):
    gift = offered(giver)
    refused_claim(gift.code, giver, 403, "own_gift")
    claim_gift(code=gift.code, claimer=friend)
    refused_claim(gift.code, user_with(), 409, "gift_already_claimed")
    refused_claim(gift.code, friend, 409, "gift_already_claimed")
    refused_claim(gift.code, giver, 403, "own_gift")


@pytest.mark.parametrize("code", ["5T9B9GCY3GPCSF20", "x", "GIFT-", "0" * 16, "%2e%2e", str(uuid.UUID(int=0))])
def test_an_unknown_code(friend, code):
    offered()
    refused_claim(code, friend, 404, "not_found")


def test_only_the_named_account_claims(giver):
    friend = user_with(email="Friend@example.com")
    gift = offered(giver, recipient_email="fRIEND@EXAMPLE.com")
    stranger = user_with()
    refused_claim(gift.code, stranger, 404, "not_found")
    unknown = Api(stranger).post(f"gifts/{gift_codes.generate()}/claim", status=404)
    not_theirs = Api(stranger).post(f"gifts/{gift.code}/claim", status=404)
    assert unknown["detail"] == not_theirs["detail"]
    refused_claim(gift.code, giver, 403, "own_gift")
    assert claim_gift(code=gift.code, claimer=friend).token.owner == friend


def test_unknown_and_not_yours_take_the_same_queries(giver):
    gift = offered(giver, recipient_email="friend@example.com")
    stranger = user_with()
    counts = []
    for code in (gift.code, gift_codes.generate()):
        with CaptureQueriesContext(connection) as queries, pytest.raises(GiftNotFound):
            claim_gift(code=code, claimer=stranger)
        counts.append([query["sql"].split(" WHERE ")[0] for query in queries if "tokens_gift" in query["sql"]])
    assert counts[0] == counts[1] != []


def test_a_closed_gift_says_why(giver, friend, later):
    taken_back, expired, rejected = (offered(giver) for _ in range(3))
    cancel_gift(gift_id=taken_back.gift.pk, giver=giver)
    reject_gift(gift_id=rejected.gift.pk, actor=user_with(), reason="r")
    Gift.objects.filter(pk=expired.gift.pk).update(expires_at=clock.now())
    refused_claim(taken_back.code, friend, 409, "gift_cancelled")
    refused_claim(rejected.code, friend, 409, "gift_cancelled")
    # Nobody has recorded the end yet.
    refused_claim(expired.code, friend, 409, "gift_expired")
    assert return_expired_gifts() == 1
    refused_claim(expired.code, friend, 409, "gift_expired")


@pytest.mark.parametrize("disabled", ["giver", "friend"])
def test_a_disabled_account_neither_gives_nor_gets(giver, friend, disabled):
    gift = offered(giver)
    user = {"giver": giver, "friend": friend}[disabled]
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    before = state()
    with pytest.raises(GiftUnavailable):
        claim_gift(code=gift.code, claimer=friend)
    assert state() == before
    if disabled == "giver":
        refused_claim(gift.code, friend, 409, "gift_unavailable")


def test_an_activation_of_the_giver_that_comes_after_the_claim_starts_nothing(giver, friend):
    gift = offered(giver)
    claimed = claim_gift(code=gift.code, claimer=friend)
    before = state()
    with pytest.raises(TokenNotUsable):
        activate_token(token_id=claimed.token.pk, at=clock.now(), owner_id=giver.pk)
    assert state() == before
    assert activate_token(token_id=claimed.token.pk, at=clock.now(), owner_id=friend.pk).activated_now
    with pytest.raises(TokenNotUsable):
        activate_token(token_id=claimed.token.pk, at=clock.now(), owner_id=giver.pk)


def test_a_claimed_token_is_given_on_and_may_come_home(giver, friend):
    first = offered(giver)
    token_id = claim_gift(code=first.code, claimer=friend).token.pk
    third = user_with()
    second = offer_gift(token_id=token_id, giver=friend)
    assert claim_gift(code=second.code, claimer=third).token.payer == giver
    home = offer_gift(token_id=token_id, giver=third)
    token = claim_gift(code=home.code, claimer=giver).token
    assert (token.owner, token.payer) == (giver, None)
    assert drifts() == {}


def test_claims_are_limited_by_user_and_by_address(settings, friend):
    policy = type(settings.RATE_LIMITS["api"])(3, 3600)
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "gift_claim": policy}
    api = Api(friend, address="198.51.100.1")
    gift = offered()
    for _ in range(3):
        api.post("gifts/x/claim", status=404)
        assert api.last["RateLimit-Policy"].startswith('"api"')
    before = state()
    api.post(f"gifts/{gift.code}/claim", status=429, code="rate_limited")
    assert api.last["RateLimit-Policy"] == '"gift_claim";q=3;w=3600'
    assert int(api.last["Retry-After"]) > 3500
    # Another user at the same address, and the same user at another one.
    Api(user_with(), address="198.51.100.1").post(f"gifts/{gift.code}/claim", status=429)
    Api(friend, address="198.51.100.2").post(f"gifts/{gift.code}/claim", status=429)
    assert state() == before
    assert api.client.options("/api/v1/gifts/x/claim").status_code == 200
    Api(user_with(), address="198.51.100.3").post(f"gifts/{gift.code}/claim")
    staff = Api(user_with(is_superuser=True), address="198.51.100.1")
    for _ in range(5):
        staff.post("gifts/x/claim", status=404)


def test_without_redis_nobody_claims(own_redis, friend):  # noqa: F811
    gift = offered()
    api = Api(friend)
    before = state()
    own_redis.stop()
    api.post(f"gifts/{gift.code}/claim", status=503, code="service_unavailable")
    assert state() == before


# --- taking back


def test_a_gift_is_cancelled(giver, friend, told, django_capture_on_commit_callbacks):
    bought = purchase_token(owner=giver, duration_hours=24)
    gift = offer_gift(token_id=bought.token.pk, giver=giver).gift
    before = state()
    for user, gift_id in ((friend, gift.pk), (giver, uuid.uuid4())):
        Api(user).delete(f"gifts/{gift_id}", status=404, code="not_found")
    assert state() == before

    with django_capture_on_commit_callbacks(execute=True):
        Api(giver).delete(f"gifts/{gift.pk}")

    token = AccessToken.objects.get()
    assert (token.status(), token.owner, token.payer) == ("ready", giver, None)
    credential = credential_by_digest(secrets.digest(bought.secret))
    assert credential is not None and not credential.held
    assert told[-1] == {"digests": [token.digest], "token_ids": [token.id], "revoked": False}
    [event] = events("gift.cancelled")
    assert (event.user, event.data) == (giver, {"gift_id": str(gift.pk), "token_id": str(token.pk)})
    before = state()
    Api(giver).delete(f"gifts/{gift.pk}", status=409, code="gift_cancelled")
    assert state() == before
    assert Api(giver).delete(f"tokens/{token.pk}", status=200)["refund_amount"] == "18.00"


def test_what_is_claimed_or_expired_is_not_cancelled(giver, friend):
    claimed, expired = offered(giver), offered(giver)
    claim_gift(code=claimed.code, claimer=friend)
    Gift.objects.filter(pk=expired.gift.pk).update(expires_at=clock.now())
    tasks.return_expired_gifts()
    before = state()
    Api(giver).delete(f"gifts/{claimed.gift.pk}", status=409, code="gift_already_claimed")
    Api(giver).delete(f"gifts/{expired.gift.pk}", status=409, code="gift_expired")
    assert state() == before


def test_what_nobody_claims_comes_back(giver, told, later, django_capture_on_commit_callbacks):
    gifts = [offered(giver).gift for _ in range(3)]
    waiting = offered(giver, duration_hours=168).gift
    kept = offered(giver).gift
    now = clock.now()
    Gift.objects.filter(pk=kept.pk).update(expires_at=now + timedelta(days=15))
    later(days=14, seconds=1)
    with django_capture_on_commit_callbacks(execute=True):
        assert return_expired_gifts(limit=2) == 2
        assert tasks.return_expired_gifts() == 1
        assert tasks.return_expired_gifts() == 0
    assert len(told) == 3
    closed = Gift.objects.filter(status="expired")
    assert {gift.pk for gift in closed} == {gift.pk for gift in gifts}
    assert {event.data["gift_id"] for event in events("gift.expired")} == {str(gift.pk) for gift in gifts}
    held = set(AccessToken.objects.filter(held_at__isnull=False).values_list("pk", flat=True))
    assert held == {waiting.token_id, kept.token_id}
    assert drifts() == {}


# --- approval


def test_a_long_gift_waits_for_staff(giver, friend, later):
    token = purchase_token(owner=giver, duration_hours=168).token
    answer = Api(giver).post(f"tokens/{token.pk}/gift", status=201)
    assert (answer["status"], answer["expires_at"]) == ("awaiting_approval", None)
    refused_claim(answer["code"], friend, 409, "gift_awaits_approval")
    gift_id = uuid.UUID(answer["id"])
    before = state()
    with pytest.raises(OwnGift):
        approve_gift(gift_id=gift_id, actor=giver, reason="r")
    with pytest.raises(GiftNotFound):
        approve_gift(gift_id=uuid.uuid4(), actor=giver, reason="r")
    assert state() == before

    staff = user_with()
    approved_at = later(days=30)
    gift = approve_gift(gift_id=gift_id, actor=staff, reason="known company")
    assert (gift.status, gift.expires_at) == ("pending", approved_at + timedelta(days=14))
    assert (gift.reviewed_by, gift.reviewed_at, gift.review_reason) == (staff, approved_at, "known company")
    assert gift.expires_at is not None
    [event] = events("gift.approved")
    assert (event.user, event.data["expires_at"]) == (giver, gift.expires_at.isoformat())
    with pytest.raises(GiftNotAwaiting):
        approve_gift(gift_id=gift_id, actor=staff, reason="again")
    assert claim_gift(code=answer["code"], claimer=friend).token.owner == friend


def test_a_rejected_gift_goes_back(giver, friend):
    gift = offered(giver, duration_hours=168)
    staff = user_with()
    reject_gift(gift_id=gift.gift.pk, actor=staff, reason="odd")
    token = AccessToken.objects.get()
    assert (token.status(), token.owner) == ("ready", giver)
    closed = Gift.objects.get()
    assert (closed.status, closed.reviewed_by, closed.review_reason) == ("rejected", staff, "odd")
    [event] = events("gift.rejected")
    assert (event.user, event.data["reason"]) == (giver, "odd")
    claimed = offered(giver)
    claim_gift(code=claimed.code, claimer=friend)
    before = state()
    with pytest.raises(GiftCancelled):
        reject_gift(gift_id=gift.gift.pk, actor=staff, reason="again")
    with pytest.raises(GiftNotAwaiting):
        approve_gift(gift_id=gift.gift.pk, actor=staff, reason="after all")
    with pytest.raises(GiftAlreadyClaimed):
        reject_gift(gift_id=claimed.gift.pk, actor=staff, reason="late")
    with pytest.raises(GiftNotFound):
        reject_gift(gift_id=uuid.uuid4(), actor=staff, reason="r")
    assert state() == before


def test_a_waiting_gift_is_cancelled(giver):
    gift = offered(giver, duration_hours=168).gift
    Api(giver).delete(f"gifts/{gift.pk}")
    assert AccessToken.objects.get().status() == "ready"


# --- reading


def test_both_sides_see_the_gift_and_nobody_else(giver, friend):
    gift = offered(giver, message="Enjoy")
    claim_gift(code=gift.code, claimer=friend)
    other = offered(giver).gift
    sent, received = (Api(user).get("gifts") for user in (giver, friend))
    assert [row["id"] for row in sent["items"]] == [str(other.pk), str(gift.gift.pk)]
    assert [(row["direction"], row["message"], row["status"]) for row in received["items"]] == [
        ("received", "Enjoy", "claimed")
    ]
    assert (sent["items"][1]["direction"], sent["total"], received["total"]) == ("sent", 2, 1)
    for row in sent["items"]:
        assert "code" not in row and gift.code not in str(row)
        assert "***" in row["giver"]
    assert friend.username not in str(sent) and giver.username not in str(received)
    assert Api(user_with()).get("gifts")["total"] == 0
    Api().get("gifts", status=401)


def test_the_list_takes_a_fixed_number_of_queries(giver, friend):
    counts = []
    for _ in range(2):
        claim_gift(code=offered(giver).code, claimer=friend)
        with CaptureQueriesContext(connection) as queries:
            Api(giver).get("gifts")
        counts.append(len(queries))
    assert counts[0] == counts[1]


# --- money


def test_a_refund_goes_to_whoever_paid(giver, friend):
    gift = offered(giver)
    token_id = claim_gift(code=gift.code, claimer=friend).token.pk
    before = balance_of(giver).balance
    answer = Api(friend).delete(f"tokens/{token_id}", status=200)
    assert (answer["refund_amount"], answer["new_balance"]) == ("0.00", "0.00")
    assert balance_of(giver).balance == before + Decimal("18.00")
    assert balance_of(friend).balance == Decimal("0.00")
    posted = Transfer.objects.get(kind="REFUND")
    assert (posted.credit_account.user, posted.amount) == (giver, Decimal("18.00"))
    [revoked] = events("token.revoked")
    assert (revoked.user, revoked.data["refund_amount"], revoked.data["balance"]) == (friend, "0.00", "0.00")
    [refunded] = events("gift.refunded")
    assert (refunded.user, refunded.data["refund_amount"]) == (giver, "18.00")
    assert refunded.data["balance"] == str(balance_of(giver).balance)
    assert drifts() == {}


def test_a_used_gift_pays_its_unused_time_back_to_the_payer_and_staff_may_keep_it(giver, friend, monkeypatch):
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)
    used, kept = (claim_gift(code=offered(giver).code, claimer=friend).token for _ in range(2))
    activate_so_that(used, seconds_left=43_224)
    before = balance_of(giver).balance
    revocation = revoke_token(token_id=used.pk, actor=user_with(), refund=True, reason="abuse")
    assert (revocation.refund_amount, revocation.received) == (Decimal("9.00"), Decimal("0.00"))
    assert balance_of(giver).balance == before + Decimal("9.00")
    assert revoke_token(token_id=kept.pk, actor=None, refund=False).refund_amount == Decimal("0.00")
    assert len(events("gift.refunded")) == 1


def test_a_refund_of_a_gift_takes_the_bonus_back_even_from_its_new_owner():
    """The worst case: the buyer's referrer is given the token, and has both bonus and token."""
    referrer = user_with()
    buyer = user_with("300.00", referred_by=referrer)
    gift = offered(buyer, duration_hours=720)
    assert balance_of(referrer).balance == Decimal("30.00")
    approve_gift(gift_id=gift.gift.pk, actor=user_with(), reason="r")
    token = claim_gift(code=gift.code, claimer=referrer).token
    revoke_token(token_id=token.pk, actor=referrer, owner=referrer, refund=True)
    assert (balance_of(buyer).balance, balance_of(referrer).balance) == (Decimal("300.00"), Decimal("0.00"))
    bonus = ReferralBonus.objects.get()
    assert (bonus.refunded, bonus.net) == (Decimal("300.00"), Decimal("0.00"))
    assert drifts() == {}


# --- what the database and reconcile look after


def drifts() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with connection.cursor() as cursor:
        for check in reconciliation._CHECKS:
            cursor.execute(check.query)
            if rows := cursor.fetchall():
                found[check.name] = [row for row, _problem in rows]
    return found


def test_reconcile_finds_what_was_changed_by_hand(giver, friend):
    held, claimed, cancelled = offered(giver).gift, offered(giver), offered(giver).gift
    claim_gift(code=claimed.code, claimer=friend)
    cancel_gift(gift_id=cancelled.pk, giver=giver)
    assert drifts() == {}
    tokens = AccessToken.objects
    tokens.filter(pk=held.token_id).update(held_at=None)
    tokens.filter(pk=cancelled.token_id).update(held_at=clock.now())
    tokens.filter(pk=claimed.gift.token_id).update(owner=user_with(), payer=None)
    found = drifts()
    assert {name: sorted(rows) for name, rows in found.items()} == {
        "a token is held while a gift of it is open, and only then": sorted(
            [f"token {cancelled.token_id}", f"gift {held.pk}"]
        ),
        "a token that was given away belongs to whoever claimed it last": [f"token {claimed.gift.token_id}"],
        "each token names who paid for it": [f"token {claimed.gift.token_id}"],
    }


def test_a_second_open_gift_of_a_token_is_refused_by_the_database(giver):
    gift = Gift.objects.get(pk=offered(giver).gift.pk)
    gift.pk, gift.code_digest, gift._state.adding = uuid.uuid4(), "0" * 64, True
    with pytest.raises(IntegrityError, match="tokens_gift_one_open"), transaction.atomic():
        gift.save()


@pytest.mark.parametrize(
    ("closed", "reopened"),
    [("claimed", "pending"), ("cancelled", "claimed"), ("expired", "pending"), ("rejected", "awaiting_approval")],
)
def test_a_closed_gift_is_not_opened_again(giver, friend, closed, reopened):
    gift = offered(giver)
    if closed == "claimed":
        claim_gift(code=gift.code, claimer=friend)
    else:
        Gift.objects.update(status=closed, closed_at=clock.now())
    claimer = friend if reopened == "claimed" else None
    with pytest.raises(DatabaseError, match="Invalid transition"), transaction.atomic():
        Gift.objects.update(status=reopened, claimed_by=claimer, closed_at=None if not claimer else clock.now())
    with pytest.raises(DatabaseError, match="Cannot delete"), transaction.atomic():
        Gift.objects.all().delete()
    assert Gift.objects.get().status == closed


def test_a_pending_gift_does_not_go_back_to_waiting(giver):
    offered(giver)
    with pytest.raises(DatabaseError, match="Invalid transition"), transaction.atomic():
        Gift.objects.update(status="awaiting_approval")


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ({"status": "claimed", "closed_at": "now"}, "tokens_gift_claimed_by_somebody"),
        ({"closed_at": "now"}, "tokens_gift_open_or_closed"),
        ({"expires_at": None}, "tokens_gift_approved_has_an_end"),
    ],
)
def test_a_gift_is_consistent(giver, change, constraint):
    offered(giver)
    values = {name: clock.now() if value == "now" else value for name, value in change.items()}
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        Gift.objects.update(**values)


def test_expired_is_final_for_every_service(giver, friend):
    gift = offered(giver)
    Gift.objects.update(expires_at=clock.now())
    return_expired_gifts()
    for refused in (
        lambda: claim_gift(code=gift.code, claimer=friend),
        lambda: cancel_gift(gift_id=gift.gift.pk, giver=giver),
        lambda: reject_gift(gift_id=gift.gift.pk, actor=friend, reason="r"),
    ):
        with pytest.raises(GiftExpired):
            refused()

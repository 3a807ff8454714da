"""Refreshing, signing out, and what ends a session."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from accounts import services, tasks
from accounts.models import RefreshToken, SignInSession
from accounts.services import sessions
from notifications.models import OutboxEvent
from tests.api import Api
from tests.factories import PASSWORD, UserFactory
from tests.threads import run_at_once
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    return UserFactory()


@pytest.fixture
def signed_in(user):
    return services.sign_in(email=user.email, password=PASSWORD)


def refresh(token: str, **options):
    return Api().post("auth/refresh", {"refresh_token": token}, **options)


def grace_is_over() -> None:
    RefreshToken.objects.filter(spent_at__isnull=False).update(spent_at=clock.now() - timedelta(seconds=11))


def is_accepted(access_token: str) -> bool:
    api = Api()
    api.use(access_token)
    return api.client.get("/api/v1/users/me").status_code == 200


def test_a_refresh_gives_a_new_pair(user, signed_in):
    body = refresh(signed_in.refresh_token)

    assert body["refresh_token"] != signed_in.refresh_token
    assert is_accepted(body["access_token"])
    assert refresh(body["refresh_token"])["refresh_token"] not in {body["refresh_token"], signed_in.refresh_token}
    assert SignInSession.objects.count() == 1


def test_a_refresh_needs_no_access_token_and_minds_no_expired_one(signed_in):
    Api().post(
        "auth/refresh", {"refresh_token": signed_in.refresh_token}, headers={"Authorization": "Bearer expired.or.not"}
    )


def test_a_refresh_prolongs_the_session(signed_in):
    SignInSession.objects.update(
        last_used_at=clock.now() - timedelta(days=29), expires_at=clock.now() + timedelta(days=1)
    )

    refresh(signed_in.refresh_token)

    session = SignInSession.objects.get()
    assert session.expires_at > clock.now() + timedelta(days=29)


def test_within_the_grace_the_same_successor_comes_again(signed_in):
    first = refresh(signed_in.refresh_token)
    again = refresh(signed_in.refresh_token)

    assert again["refresh_token"] == first["refresh_token"]
    assert RefreshToken.objects.count() == 2
    assert is_accepted(again["access_token"])
    refresh(again["refresh_token"])


def test_a_replay_after_the_grace_ends_the_family(user, signed_in):
    successor = refresh(signed_in.refresh_token)
    other = services.sign_in(email=user.email, password=PASSWORD)
    grace_is_over()

    refresh(signed_in.refresh_token, status=401, code="refresh_reused")

    session = SignInSession.objects.get(pk=signed_in.session.pk)
    assert session.end_reason == "refresh_reused"
    refresh(successor["refresh_token"], status=401, code="invalid_refresh_token")
    assert not is_accepted(successor["access_token"])
    assert not is_accepted(signed_in.access_token)
    assert is_accepted(other.access_token)
    event = OutboxEvent.objects.get(event="session.refresh_reused")
    assert (event.user, event.data) == (user, {"session_id": str(session.pk)})


def test_a_replay_once_the_successor_was_used_ends_the_family_at_once(signed_in):
    """Whoever has used the successor has got the answer: nothing was lost, and the grace is for that alone."""
    successor = refresh(signed_in.refresh_token)
    latest = refresh(successor["refresh_token"])

    refresh(signed_in.refresh_token, status=401, code="refresh_reused")

    assert not is_accepted(latest["access_token"])


def test_any_generation_is_recognised(signed_in):
    token = signed_in.refresh_token
    for _ in range(5):
        token = refresh(token)["refresh_token"]
    grace_is_over()

    refresh(signed_in.refresh_token, status=401, code="refresh_reused")
    refresh(token, status=401, code="invalid_refresh_token")


@pytest.mark.parametrize("token", ["zrt_unknown", "x", "ключ", "zrt_" + "A" * 43])
def test_an_unknown_token_is_refused(signed_in, token):
    refresh(token, status=401, code="invalid_refresh_token")

    assert SignInSession.objects.alive().count() == 1
    assert RefreshToken.objects.count() == 1


def test_an_access_token_is_no_refresh_token(signed_in):
    refresh(signed_in.access_token[:255], status=401, code="invalid_refresh_token")


def test_an_expired_session_cannot_be_refreshed(signed_in):
    past = clock.now() - timedelta(seconds=1)
    SignInSession.objects.update(last_used_at=past - timedelta(days=30), expires_at=past)

    refresh(signed_in.refresh_token, status=401, code="invalid_refresh_token")

    assert RefreshToken.objects.count() == 1


def _refresh_at_once(token: str, count: int) -> list[Any]:
    return run_at_once(count, lambda _: services.refresh_session(refresh_token=token))


@pytest.mark.django_db(transaction=True)
def test_concurrent_refreshes_have_one_successor(signed_in):
    answers = _refresh_at_once(signed_in.refresh_token, 10)

    assert len({answer.refresh_token for answer in answers}) == 1
    assert RefreshToken.objects.count() == 2
    assert SignInSession.objects.alive().count() == 1


@pytest.mark.django_db(transaction=True)
def test_without_the_lock_the_refreshes_collide(signed_in, monkeypatch):
    """The control of the test above: only the unique index is left, and it refuses all but one."""
    everybody_has_read = threading.Barrier(10)

    def unlocked(digest):
        return SignInSession.objects.select_related("user").get(pk=signed_in.session.pk)

    def get_then_meet(**lookup):
        token = RefreshToken._default_manager.get(**lookup)
        everybody_has_read.wait(timeout=30)
        return token

    monkeypatch.setattr(sessions, "_lock_session_of", unlocked)
    # What follows the lock is let through together, as it may happen to be without it.
    monkeypatch.setattr(RefreshToken, "objects", SimpleNamespace(get=get_then_meet))

    answers = _refresh_at_once(signed_in.refresh_token, 10)

    assert [type(answer) for answer in answers].count(IntegrityError) == 9


def test_the_database_refuses_a_second_unspent_token(signed_in):
    row = RefreshToken.objects.get()
    with pytest.raises(IntegrityError), transaction.atomic():
        RefreshToken.objects.create(session=row.session, generation=7, nonce=b"n" * 16, digest=b"d" * 32)


def test_signing_out_ends_the_session(user, signed_in):
    api = Api()
    api.use(signed_in.access_token)

    assert api.post("auth/logout", {"refresh_token": signed_in.refresh_token}, status=204) is None

    api.get("users/me", status=401, code="invalid_access_token")
    refresh(signed_in.refresh_token, status=401, code="invalid_refresh_token")
    assert SignInSession.objects.get().end_reason == "signed_out"


def test_signing_out_without_a_refresh_token_ends_the_session_too(signed_in):
    api = Api()
    api.use(signed_in.access_token)

    api.post("auth/logout", status=204)

    assert not is_accepted(signed_in.access_token)


def test_signing_out_with_the_token_of_another_own_session_ends_both(user, signed_in):
    other = services.sign_in(email=user.email, password=PASSWORD)
    api = Api()
    api.use(signed_in.access_token)

    api.post("auth/logout", {"refresh_token": other.refresh_token}, status=204)

    assert not is_accepted(other.access_token)
    assert not is_accepted(signed_in.access_token)


def test_signing_out_with_a_strangers_token_leaves_the_stranger_signed_in(signed_in):
    stranger = services.sign_in(email=UserFactory().email, password=PASSWORD)
    api = Api()
    api.use(signed_in.access_token)

    api.post("auth/logout", {"refresh_token": stranger.refresh_token}, status=204)

    assert is_accepted(stranger.access_token)


def test_signing_out_needs_a_session(signed_in):
    Api().post("auth/logout", {"refresh_token": signed_in.refresh_token}, status=401, code="not_authenticated")

    assert SignInSession.objects.alive().count() == 1


def test_the_list_shows_live_sessions_of_the_user_alone(user, signed_in):
    ended = services.sign_in(email=user.email, password=PASSWORD)
    services.sign_out(session=ended.session)
    services.sign_in(email=UserFactory().email, password=PASSWORD)
    other = services.sign_in(email=user.email, password=PASSWORD, address="198.51.100.7", user_agent="desktop")
    api = Api()
    api.use(signed_in.access_token)

    body = api.get("users/me/sessions")

    assert (body["total"], body["limit"], body["offset"]) == (2, 50, 0)
    assert [item["id"] for item in body["items"]] == [str(other.session.pk), str(signed_in.session.pk)]
    assert [item["current"] for item in body["items"]] == [False, True]
    assert (body["items"][0]["address"], body["items"][0]["user_agent"]) == ("198.51.100.7", "desktop")
    assert set(body["items"][0]) == {
        "id",
        "address",
        "user_agent",
        "created_at",
        "last_used_at",
        "expires_at",
        "current",
    }


def test_the_list_has_a_fixed_number_of_queries(user, signed_in, django_assert_num_queries):
    for _ in range(10):
        services.sign_in(email=user.email, password=PASSWORD)
    api = Api()
    api.use(signed_in.access_token)

    with django_assert_num_queries(3):
        assert len(api.get("users/me/sessions")["items"]) == 11


def test_one_session_can_be_ended(user, signed_in):
    other = services.sign_in(email=user.email, password=PASSWORD)
    api = Api()
    api.use(signed_in.access_token)

    api.delete(f"users/me/sessions/{other.session.pk}")

    assert not is_accepted(other.access_token)
    assert is_accepted(signed_in.access_token)
    api.delete(f"users/me/sessions/{other.session.pk}", status=404, code="not_found")


@pytest.mark.parametrize("which", ["00000000-0000-4000-8000-000000000000", "not-a-uuid", "%00", "%ff", "stranger's"])
def test_what_is_not_an_own_session_is_not_found(signed_in, which):
    stranger = services.sign_in(email=UserFactory().email, password=PASSWORD)
    api = Api()
    api.use(signed_in.access_token)

    which = str(stranger.session.pk) if which == "stranger's" else which
    api.delete(f"users/me/sessions/{which}", status=404, code="not_found")

    assert SignInSession.objects.alive().count() == 2


def test_old_sessions_are_forgotten(user, signed_in):
    now = clock.now()
    for column, age in {"ended_at": 31, "expires_at": 31, "kept": 29}.items():
        session = services.sign_in(email=user.email, password=PASSWORD).session
        changes: dict[str, Any] = {"last_used_at": now - timedelta(days=70), "expires_at": now - timedelta(days=age)}
        if column != "expires_at":
            changes |= {"ended_at": now - timedelta(days=age), "end_reason": "signed_out"}
            changes["expires_at"] = now
        SignInSession.objects.filter(pk=session.pk).update(**changes)

    assert tasks.forget_ended_sessions() == 2
    assert SignInSession.objects.count() == 2
    assert RefreshToken.objects.count() == 2
    assert services.forget_ended_sessions() == 0


def test_forgetting_is_scheduled():
    assert tasks.forget_ended_sessions.name in {entry["task"] for entry in tasks.SCHEDULE.values()}

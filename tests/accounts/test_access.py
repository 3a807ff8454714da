"""Disabling and enabling users."""

from __future__ import annotations

import uuid

import pytest

from accounts import services
from accounts.exceptions import OwnAccount, UserNotFound
from accounts.models import SignInSession
from accounts.signals import user_access_changed
from notifications.models import OutboxEvent
from tests.api import Api
from tests.factories import PASSWORD, StaffFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def told():
    """What higher apps have been told."""
    seen: list[uuid.UUID] = []

    def receiver(*, user_id, **_):
        seen.append(user_id)

    user_access_changed.connect(receiver)
    yield seen
    user_access_changed.disconnect(receiver)


def test_disabling_ends_every_session_and_is_told_after_commit(told, django_capture_on_commit_callbacks):
    user, actor = UserFactory(), StaffFactory()
    api = Api(user)
    signed_in = services.sign_in(email=user.email, password=PASSWORD)

    with django_capture_on_commit_callbacks(execute=True):
        assert services.set_user_active(user_id=user.pk, active=False, actor=actor, reason="fraud")
        assert told == []

    assert told == [user.pk]
    api.get("users/me", status=401, code="invalid_access_token")
    Api().post("auth/refresh", {"refresh_token": signed_in.refresh_token}, status=401)
    Api().post("auth/login", {"email": user.email, "password": PASSWORD}, status=401, code="invalid_credentials")
    assert set(SignInSession.objects.values_list("end_reason", flat=True)) == {"user_disabled"}
    event = OutboxEvent.objects.get()
    assert (event.event, event.user) == ("user.disabled", user)
    assert event.data == {"user_id": str(user.pk), "actor_id": str(actor.pk), "reason": "fraud"}


def test_enabling_revives_no_session(told, django_capture_on_commit_callbacks):
    user = UserFactory()
    api = Api(user)
    with django_capture_on_commit_callbacks(execute=True):
        services.set_user_active(user_id=user.pk, active=False, actor=None, reason="")
        services.set_user_active(user_id=user.pk, active=True, actor=None, reason="sorted out")

    assert told == [user.pk, user.pk]
    api.get("users/me", status=401)
    assert Api(user).get("users/me")["is_active"] is True


def test_a_user_disabled_behind_the_services_back_is_refused():
    user = UserFactory()
    api = Api(user)
    type(user).objects.filter(pk=user.pk).update(is_active=False)

    api.get("users/me", status=401, code="invalid_access_token")


def test_nothing_to_change_is_nothing_told(told, django_capture_on_commit_callbacks):
    user = UserFactory()
    with django_capture_on_commit_callbacks(execute=True):
        assert not services.set_user_active(user_id=user.pk, active=True, actor=None, reason="")

    assert told == []
    assert not OutboxEvent.objects.exists()


def test_nobody_disables_themselves():
    staff = StaffFactory()

    with pytest.raises(OwnAccount):
        services.set_user_active(user_id=staff.pk, active=False, actor=staff, reason="tired")

    staff.refresh_from_db()
    assert staff.is_active


def test_an_unknown_user_is_not_found():
    with pytest.raises(UserNotFound):
        services.set_user_active(user_id=uuid.uuid4(), active=False, actor=None, reason="")


def test_a_receiver_that_fails_does_not_undo_the_answer(told, django_capture_on_commit_callbacks, caplog):
    def broken(**_):
        raise RuntimeError("cache is away")

    user = UserFactory()
    user_access_changed.connect(broken)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            services.set_user_active(user_id=user.pk, active=False, actor=None, reason="")
    finally:
        user_access_changed.disconnect(broken)

    assert told == [user.pk]
    assert "cache is away" in caplog.text

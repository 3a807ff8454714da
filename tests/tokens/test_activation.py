"""A token's clock starts once."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps

from tests.money import token_of_new_user
from tests.threads import Meeting, run_at_once
from tokens.exceptions import TokenNotUsable
from tokens.models import AccessToken
from tokens.services import Activation, activate_token, revoke_token
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


def activation_events() -> list[Any]:
    return list(apps.get_model("notifications.OutboxEvent").objects.filter(event="token.activated"))


def test_the_clock_starts_at_the_given_moment():
    token = token_of_new_user(24).token
    at = clock.now() - timedelta(seconds=3)
    activation = activate_token(token_id=token.id, at=at)
    assert activation == Activation(activated_at=at, expires_at=at + timedelta(hours=24), activated_now=True)
    token.refresh_from_db()
    assert (token.activated_at, token.expires_at, token.status()) == (at, at + timedelta(hours=24), "active")
    [event] = activation_events()
    assert event.user == token.owner
    assert event.data == {
        "token_id": str(token.id),
        "activated_at": at.isoformat(),
        "expires_at": (at + timedelta(hours=24)).isoformat(),
    }


def test_a_later_call_returns_the_first_moment():
    token = token_of_new_user().token
    first = activate_token(token_id=token.id, at=clock.now())
    again = activate_token(token_id=token.id, at=clock.now() + timedelta(hours=1))
    assert again == Activation(first.activated_at, first.expires_at, activated_now=False)
    assert len(activation_events()) == 1


def test_a_revoked_token_is_not_activated():
    token = token_of_new_user().token
    revoke_token(token_id=token.id, actor=None, refund=True)
    with pytest.raises(TokenNotUsable):
        activate_token(token_id=token.id, at=clock.now())
    token.refresh_from_db()
    assert token.activated_at is None
    assert activation_events() == []


def test_a_token_revoked_after_activation_is_not_usable():
    token = token_of_new_user().token
    activate_token(token_id=token.id, at=clock.now())
    revoke_token(token_id=token.id, actor=None, refund=True)
    with pytest.raises(TokenNotUsable):
        activate_token(token_id=token.id, at=clock.now())


def test_an_unknown_token_is_not_usable():
    with pytest.raises(TokenNotUsable):
        activate_token(token_id=uuid.uuid4(), at=clock.now())


def started_at_once(token: AccessToken) -> list[Activation]:
    base = clock.now()
    return run_at_once(16, lambda n: activate_token(token_id=token.id, at=base + timedelta(seconds=n)))


@pytest.mark.django_db(transaction=True)
def test_of_many_first_requests_one_starts_the_clock():
    token = token_of_new_user().token
    activations = started_at_once(token)
    assert [activation.activated_now for activation in activations].count(True) == 1
    assert len({activation.activated_at for activation in activations}) == 1
    assert len(activation_events()) == 1


@pytest.mark.django_db(transaction=True)
def test_reading_first_and_writing_then_starts_it_more_than_once():
    """Negative control: without the compare-and-set the clock is started by several."""
    token = token_of_new_user().token

    two = Meeting(2)

    def read_then_write(_: int) -> bool:
        row = AccessToken.objects.get(pk=token.pk)
        two.wait()
        if row.activated_at is not None:
            return False
        row.activated_at = clock.now()
        row.expires_at = row.activated_at + row.duration
        row.save()
        return True

    assert run_at_once(16, read_then_write).count(True) > 1

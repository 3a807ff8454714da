"""The end of a token is recorded once."""

from __future__ import annotations

import pytest
from django.apps import apps

from tests.money import activate_so_that, token_of_new_user
from tests.threads import run_at_once
from tokens.models import AccessToken
from tokens.services import record_expiries, revoke_token
from tokens.tasks import SCHEDULE, expire_tokens
from zenzefi.celery import app

pytestmark = pytest.mark.django_db


def expired_tokens(count: int) -> list[AccessToken]:
    tokens = [token_of_new_user(1).token for _ in range(count)]
    for token in tokens:
        activate_so_that(token, seconds_left=-1)
    return tokens


def recorded() -> list[str]:
    events = apps.get_model("notifications.OutboxEvent").objects.filter(event="token.expired")
    return sorted(event.data["token_id"] for event in events)


def test_only_what_ran_out_is_recorded_and_once():
    [expired] = expired_tokens(1)
    activate_so_that(token_of_new_user().token, seconds_left=60)
    token_of_new_user()
    revoked = token_of_new_user().token
    activate_so_that(revoked, seconds_left=60)
    revoke_token(token_id=revoked.id, actor=None, refund=False)
    AccessToken.objects.filter(pk=revoked.pk).update(expires_at=expired.expires_at)
    assert record_expiries() == 1
    assert record_expiries() == 0
    assert recorded() == [str(expired.id)]
    event = apps.get_model("notifications.OutboxEvent").objects.get(event="token.expired")
    assert event.user == expired.owner
    assert expired.expires_at is not None
    assert event.data["expires_at"] == expired.expires_at.isoformat()


def test_the_task_goes_on_until_nothing_is_left():
    tokens = expired_tokens(3)
    assert record_expiries(limit=1) == 1
    assert expire_tokens() == 2
    assert recorded() == sorted(str(token.id) for token in tokens)
    assert expire_tokens() == 0


@pytest.mark.django_db(transaction=True)
def test_workers_at_once_record_each_once():
    tokens = expired_tokens(12)
    counts = run_at_once(6, lambda _: expire_tokens())
    assert sum(counts) == 12
    assert recorded() == sorted(str(token.id) for token in tokens)


def test_the_schedule_names_a_task_that_exists():
    app.loader.import_default_modules()
    assert {entry["task"] for entry in SCHEDULE.values()} <= set(app.tasks)

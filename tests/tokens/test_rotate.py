"""POST /tokens/{id}/rotate."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps

from tests.money import activate_so_that, api, token_of_new_user, user_with
from tests.threads import run_at_once
from tokens import secrets
from tokens.models import AccessToken, RotatedDigest
from tokens.selectors import changed_since, credential_by_digest
from tokens.services import record_device_use, revoke_token, rotate_token
from tokens.signals import credentials_changed
from wallet.models import Transfer
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


def url(token: AccessToken) -> str:
    return f"/api/v1/tokens/{token.id}/rotate"


def test_the_old_secret_is_unknown_and_the_new_one_known(django_capture_on_commit_callbacks):
    told: list[dict[str, Any]] = []

    def receive(**arguments: Any) -> None:
        told.append(arguments)

    bought = token_of_new_user()
    activate_so_that(bought.token, seconds_left=600)
    record_device_use([(bought.token.id, "device-1", clock.now())])
    before: dict[str, Any] = {**AccessToken.objects.values().get(pk=bought.token.pk)}
    started = clock.now()
    credentials_changed.connect(receive)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            answer = api(bought.token.owner).post(url(bought.token))
    finally:
        credentials_changed.disconnect(receive)
    assert answer.status_code == 200
    secret = answer.json()["token"]
    assert secrets.is_well_formed(secret)
    assert secret != bought.secret
    assert answer.json()["token_hint"] == f"znz_…{secret[-4:]}"
    assert credential_by_digest(secrets.digest(bought.secret)) is None
    known = credential_by_digest(secrets.digest(secret))
    assert known is not None
    assert known.token_id == bought.token.id
    after: dict[str, Any] = {**AccessToken.objects.values().get(pk=bought.token.pk)}
    assert {name for name in after if after[name] != before[name]} == {"digest", "last_four", "changed_at"}
    assert Transfer.objects.filter(kind="PURCHASE").count() == 1

    [call] = told
    assert (call["digests"], call["token_ids"], call["revoked"]) == ([bought.token.digest], [bought.token.id], False)
    assert (bought.token.id, bought.token.digest, False) in {
        (changed.token_id, changed.digest, changed.revoked) for changed in changed_since(started)
    }


def test_the_event_holds_no_secret():
    bought = token_of_new_user()
    rotated = rotate_token(token_id=bought.token.id, owner=bought.token.owner)
    event = apps.get_model("notifications.OutboxEvent").objects.get(event="token.rotated")
    assert event.data == {"token_id": str(bought.token.id)}
    assert rotated.secret not in repr(rotated)


def test_a_lost_answer_can_be_had_again_with_the_same_key():
    bought = token_of_new_user()
    client = api(bought.token.owner)
    first, second = (client.post(url(bought.token), headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json()["token"] == second.json()["token"]
    assert RotatedDigest.objects.count() == 1


def assert_refused(token: AccessToken, user: Any, status: int, code: str) -> None:
    before = list(AccessToken.objects.values())
    answer = api(user).post(url(token))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert list(AccessToken.objects.values()) == before
    assert RotatedDigest.objects.count() == 0


def test_a_revoked_token_is_not_rotated():
    token = token_of_new_user().token
    revoke_token(token_id=token.id, actor=None, refund=True)
    assert_refused(token, token.owner, 409, "token_already_revoked")


def test_an_expired_token_is_not_rotated():
    token = token_of_new_user().token
    activate_so_that(token, seconds_left=-1)
    assert_refused(token, token.owner, 409, "token_expired")


def test_the_token_of_another_is_not_there():
    assert_refused(token_of_new_user().token, user_with(), 404, "not_found")


@pytest.mark.django_db(transaction=True)
def test_rotations_at_once_leave_one_secret():
    token = token_of_new_user().token
    rotated = run_at_once(8, lambda _: rotate_token(token_id=token.id, owner=token.owner).secret)
    assert len(set(rotated)) == 8
    known = [secret for secret in rotated if credential_by_digest(secrets.digest(secret))]
    assert len(known) == 1
    assert RotatedDigest.objects.count() == 8

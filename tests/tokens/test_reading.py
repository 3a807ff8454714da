"""Reading tokens: prices, lists, one, check, and what the gateway asks for."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.money import activate_so_that, api, token_of_new_user, user_with
from tokens import secrets
from tokens.models import AccessToken, Scope, TokenPrice
from tokens.selectors import changed_since, credential_by_digest, digests_of_user
from tokens.services import purchase_token, record_device_use, revoke_token, update_token
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db

MY_TOKENS = "/api/v1/tokens/my-tokens"
CHECK = "/api/v1/tokens/check"


def test_prices_are_public():
    page = api().get("/api/v1/tokens/prices").json()
    assert [(row["duration_hours"], row["price"]) for row in page["items"]] == [
        (1, "1.00"),
        (12, "10.00"),
        (24, "18.00"),
        (168, "100.00"),
        (720, "300.00"),
    ]
    assert {tuple(row["scopes"]) for row in page["items"]} == {("certificates_only", "full")}
    assert page["total"] == 5


def test_what_is_not_sold_has_no_price():
    TokenPrice.objects.filter(duration_hours=1).update(is_active=False)
    Scope.objects.filter(slug="certificates_only").update(is_active=False)
    page = api().get("/api/v1/tokens/prices").json()
    assert [row["duration_hours"] for row in page["items"]] == [12, 24, 168, 720]
    assert {tuple(row["scopes"]) for row in page["items"]} == {("full",)}
    assert str(TokenPrice.objects.get(duration_hours=24)) == "24 h: 18.00 ZNC"


@pytest.fixture
def owner():
    """Owns, from the oldest: a revoked, an expired, an active and a ready token."""
    owner = user_with("1000.00")
    revoked, expired, active, _ready = (
        purchase_token(owner=owner, duration_hours=24, label=label).token
        for label in ("revoked", "expired", "active", "ready")
    )
    revoke_token(token_id=revoked.id, actor=owner, refund=True)
    activate_so_that(expired, seconds_left=-1)
    activate_so_that(active, seconds_left=600.5)
    record_device_use([(active.id, "device-1", clock.now())])
    return owner


def test_the_usable_ones_newest_first(owner):
    page = api(owner).get(MY_TOKENS).json()
    assert [(row["label"], row["status"], row["is_active"]) for row in page["items"]] == [
        ("ready", "ready", True),
        ("active", "active", True),
    ]
    ready, active = page["items"]
    assert (ready["time_remaining_seconds"], ready["device"]) == (None, None)
    assert 590 <= active["time_remaining_seconds"] <= 600
    assert active["device"]["id"] == "device-1"
    assert all("token" not in row and "digest" not in row for row in page["items"])


def test_all_of_them(owner):
    page = api(owner).get(MY_TOKENS, {"active_only": "false"}).json()
    assert [(row["label"], row["status"], row["is_active"]) for row in page["items"]] == [
        ("ready", "ready", True),
        ("active", "active", True),
        ("expired", "expired", False),
        ("revoked", "revoked", False),
    ]
    expired, revoked = page["items"][2:]
    assert expired["time_remaining_seconds"] == 0
    assert (revoked["refunded_znc"], revoked["revoked_at"] is None) == ("18.00", False)


def test_pages(owner):
    page = api(owner).get(MY_TOKENS, {"limit": 1, "offset": 1}).json()
    assert ([row["label"] for row in page["items"]], page["total"]) == (["active"], 2)


@pytest.mark.parametrize("query", [{"active_only": "perhaps"}, {"limit": "-1"}, {"offset": "x"}])
def test_malformed_filters_are_refused_by_name(owner, query):
    answer = api(owner).get(MY_TOKENS, query)
    assert answer.status_code == 400
    assert set(answer.json()["errors"]) == set(query)


def test_lists_take_a_fixed_number_of_queries(owner):
    with CaptureQueriesContext(connection) as queries:
        api(owner).get(MY_TOKENS, {"active_only": "false"})
    assert len(queries) == 2


def test_nobody_sees_the_tokens_of_others(owner):
    stranger = api(user_with())
    token = AccessToken.objects.filter(owner=owner).latest("created_at")
    assert stranger.get(MY_TOKENS).json()["total"] == 0
    for answer in (
        stranger.get(f"/api/v1/tokens/{token.id}"),
        stranger.patch(f"/api/v1/tokens/{token.id}", {"label": "mine"}, format="json"),
        stranger.get(f"/api/v1/tokens/{uuid.uuid4()}"),
        stranger.get("/api/v1/tokens/nonsense"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert not AccessToken.objects.filter(label="mine").exists()


def test_nobody_signed_in_sees_none(owner):
    token = AccessToken.objects.filter(owner=owner).latest("created_at")
    for answer in (api().get(MY_TOKENS), api().get(f"/api/v1/tokens/{token.id}")):
        assert answer.json()["code"] == "not_authenticated"


def test_a_token_is_named():
    token = token_of_new_user().token
    client, url = api(token.owner), f"/api/v1/tokens/{token.id}"
    assert client.patch(url, {"label": "  lathe  "}, format="json").json()["label"] == "lathe"
    assert client.get(url).json()["label"] == "lathe"
    assert client.patch(url, {"paid": "0.01"}, format="json").json()["label"] == "lathe"
    assert client.patch(url, {"label": ""}, format="json").json()["label"] == ""
    refused: tuple[Any, ...] = (None, [], True, 5, "x" * 101, "a\x00b")
    for label in refused:
        assert client.patch(url, {"label": label}, format="json").status_code == 400
    token.refresh_from_db()
    assert (token.label, token.paid) == ("", Decimal("18.00"))
    assert update_token(token_id=token.id, owner=token.owner) == token


def check(secret: str) -> dict[str, Any]:
    answer = api().post(CHECK, {"token": secret}, format="json")
    assert answer.status_code == 200
    return answer.json()


UNKNOWN = {"valid": False, "status": None, "expires_at": None, "time_remaining_seconds": None}


def test_a_check_never_activates():
    bought = token_of_new_user()
    ready = {"valid": True, "status": "ready", "expires_at": None, "time_remaining_seconds": None}
    assert check(bought.secret) == check(bought.secret) == ready
    bought.token.refresh_from_db()
    assert bought.token.activated_at is None


def test_a_check_of_an_active_an_expired_and_a_revoked_token():
    bought = token_of_new_user()
    activate_so_that(bought.token, seconds_left=600)
    active = check(bought.secret)
    assert (active["valid"], active["status"]) == (True, "active")
    assert 590 <= active["time_remaining_seconds"] <= 600
    AccessToken.objects.update(expires_at=clock.now() - timedelta(seconds=1))
    expired = check(bought.secret)
    assert (expired["valid"], expired["status"], expired["time_remaining_seconds"]) == (False, "expired", 0)
    AccessToken.objects.update(revoked_at=clock.now())
    assert (check(bought.secret)["valid"], check(bought.secret)["status"]) == (False, "revoked")


def test_a_check_of_a_disabled_owners_token():
    bought = token_of_new_user()
    get_user_model().objects.filter(pk=bought.token.owner.pk).update(is_active=False)
    assert check(bought.secret)["valid"] is False


def test_a_check_of_what_is_no_token():
    for secret in (secrets.generate(), "znz_", "x", "ключ", " " + token_of_new_user().secret):
        assert check(secret) == UNKNOWN


@pytest.mark.parametrize("body", [{}, {"token": None}, {"token": ""}, {"token": []}, {"token": "x" * 256}])
def test_a_malformed_check(body):
    assert api().post(CHECK, body, format="json").status_code == 400


def test_the_credential_of_a_token():
    bought = token_of_new_user(24, scope="certificates_only")
    activate_so_that(bought.token, seconds_left=600)
    credential = credential_by_digest(secrets.digest(bought.secret))
    assert credential is not None
    assert (credential.token_id, credential.user_id) == (bought.token.id, bought.token.owner_id)
    assert (credential.scope, credential.duration_seconds) == ("certificates_only", 86_400)
    assert (credential.activated_at, credential.expires_at) == (bought.token.activated_at, bought.token.expires_at)
    assert (credential.revoked, credential.owner_active, credential.owner_is_superuser) == (False, True, False)
    assert (credential.device_id, credential.device_seen_at) == ("", None)
    assert credential_by_digest("0" * 64) is None


def test_the_digests_of_a_user():
    bought = token_of_new_user()
    revoked = purchase_token(owner=bought.token.owner, duration_hours=1).token
    revoke_token(token_id=revoked.id, actor=None, refund=True)
    token_of_new_user()
    assert digests_of_user(bought.token.owner_id) == [(bought.token.id, bought.token.digest)]


def test_what_changed_since_a_moment():
    bought = token_of_new_user()
    moment = clock.now()
    assert changed_since(moment) == []
    revoke_token(token_id=bought.token.id, actor=None, refund=True)
    [changed] = changed_since(moment)
    assert (changed.token_id, changed.digest, changed.revoked) == (bought.token.id, bought.token.digest, True)


def test_names():
    bought = token_of_new_user()
    assert str(bought.token) == f"znz_…{bought.secret[-4:]}"
    assert str(bought.token.scope) == "full"

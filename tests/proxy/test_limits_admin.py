"""Limits and the switch in the back office: who may, what it asks, what it does."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission

from accounts.models import Tier
from notifications.models import OutboxEvent
from proxy.models import GatewaySwitch, TierLimits, TokenLimits
from proxy.selectors import limits_of
from tests.money import staff_client, token_of_new_user, user_with
from tokens.models import AccessToken
from tokens.selectors import credential_by_digest

pytestmark = pytest.mark.django_db
TOKENS, TIERS, SWITCH = (f"/admin/proxy/{name}/" for name in ("tokenlimits", "tierlimits", "gatewayswitch"))


def staff(*permissions: str) -> Any:
    user = user_with(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return staff_client(user)


def in_force(token: AccessToken) -> Any:
    credential = credential_by_digest(token.digest)
    assert credential is not None
    return limits_of(credential)


def test_limits_of_a_token_are_set_and_changed_with_a_reason():
    client = staff("view_tokenlimits", "add_tokenlimits", "change_tokenlimits")
    token = token_of_new_user(24).token
    body = {"token": str(token.pk), "requests_per_minute": "50", "seats": "3", "reason": "a team"}

    assert client.post(f"{TOKENS}add/", body).status_code == 302
    assert (in_force(token).rate, in_force(token).seats, in_force(token).networks) == (50, 3, ())

    row = TokenLimits.objects.get()
    page = client.get(f"{TOKENS}{row.pk}/change/").content.decode()
    assert 'value="50"' in page
    body = {"seats": "4", "allowed_ips": "10.1.2.3/8\r\n2001:db8::1", "reason": "moved"}
    assert client.post(f"{TOKENS}{row.pk}/change/", body).status_code == 302
    assert (in_force(token).rate, in_force(token).seats) == (0, 4)
    assert in_force(token).networks == ("10.0.0.0/8", "2001:db8::1/128")
    assert "10.0.0.0/8\n2001:db8::1/128" in client.get(f"{TOKENS}{row.pk}/change/").content.decode()

    events = OutboxEvent.objects.filter(event="token.limits_changed").order_by("created_at")
    assert [event.data["reason"] for event in events] == ["a team", "moved"]
    assert events[1].data["limits"] == {"requests_per_minute": None, "seats": 4}
    assert token.owner.username in client.get(TOKENS).content.decode()


@pytest.mark.parametrize(
    "wrong",
    [
        {"reason": ""},
        {"seats": "0"},
        {"seats": "-1"},
        {"requests_per_minute": "0"},
        {"bytes_per_day": str(2**60)},
        {"bandwidth": "fast"},
        {"allowed_ips": "nonsense"},
        {"allowed_ips": "\n".join(f"10.0.0.{number}" for number in range(51))},
    ],
)
def test_what_is_wrong_changes_nothing(wrong):
    client = staff("view_tokenlimits", "add_tokenlimits")
    token = token_of_new_user(24).token
    body = {"token": str(token.pk), "seats": "2", "reason": "because", **wrong}

    assert client.post(f"{TOKENS}add/", body).status_code == 200
    assert not TokenLimits.objects.exists()
    assert not OutboxEvent.objects.filter(event="token.limits_changed").exists()
    token.refresh_from_db()
    assert token.allowed_ips == []


def test_limits_of_a_tier():
    client = staff("view_tierlimits", "add_tierlimits", "change_tierlimits")
    token = token_of_new_user(24).token
    assert client.post(f"{TIERS}add/", {"tier": "free", "concurrent_requests": "7", "reason": "r"}).status_code == 302
    assert in_force(token).concurrency == 7
    assert (
        client.post(f"{TIERS}free/change/", {"concurrent_requests": "8", "bandwidth": "1000", "reason": "r"})
    ).status_code == 302
    assert (in_force(token).concurrency, in_force(token).bandwidth) == (8, 1000)
    assert TierLimits.objects.get().tier == Tier.objects.get(slug="free")
    assert client.get(TIERS).status_code == 200


@pytest.mark.parametrize("url", [TOKENS, TIERS])
def test_limits_need_their_permission_and_are_not_deleted(url):
    token = token_of_new_user(24).token
    body = {"token": str(token.pk), "tier": "free", "seats": "2", "reason": "because"}
    assert staff("view_tokenlimits", "view_tierlimits").post(f"{url}add/", body).status_code == 403
    TokenLimits.objects.create(token=token)
    TierLimits.objects.create(tier_id="free")
    everything = staff(*Permission.objects.values_list("codename", flat=True))
    row = token.pk if url == TOKENS else "free"
    assert everything.post(f"{url}{row}/delete/", {"post": "yes"}).status_code == 403
    assert TokenLimits.objects.exists() and TierLimits.objects.exists()


def switch(client: Any, action: str, **form: str) -> Any:
    return client.post(SWITCH, {"action": action, "_selected_action": "1", **form}, follow=True)


def test_the_gateway_is_closed_and_opened_with_a_reason():
    client = staff("view_gatewayswitch", "operate_gateway_switch")
    asked = switch(client, "close_gateway")
    assert "Reason" in asked.content.decode()
    assert not GatewaySwitch.objects.get().is_closed
    assert "required" in switch(client, "close_gateway", confirm="1", reason="").content.decode()
    assert not GatewaySwitch.objects.get().is_closed

    assert "The gateway is closed." in switch(client, "close_gateway", confirm="1", reason="attack").content.decode()
    row = GatewaySwitch.objects.get()
    assert (row.is_closed, row.reason, row.changed_by is not None) == (True, "attack", True)
    switch(client, "close_gateway", confirm="1", reason="twice")
    assert "The gateway is open." in switch(client, "open_gateway", confirm="1", reason="over").content.decode()
    assert list(
        OutboxEvent.objects.filter(event__startswith="gateway.").order_by("created_at").values_list("event", flat=True)
    ) == ["gateway.closed", "gateway.opened"]
    assert client.get(f"{SWITCH}1/change/").status_code == 200


def test_the_switch_needs_its_permission():
    client = staff("view_gatewayswitch")
    switch(client, "close_gateway", confirm="1", reason="attack")
    assert not GatewaySwitch.objects.get().is_closed
    assert client.post(f"{SWITCH}add/", {"is_closed": "on"}).status_code == 403

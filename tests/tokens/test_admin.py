"""Access tokens in the back office."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext

from notifications.models import OutboxEvent
from tests.money import activate_so_that, renewing_token, staff_client, token_of_new_user, user_with
from tokens.models import AccessToken, RotatedDigest, Scope, TokenPrice
from tokens.services import offer_gift, renew_token, revoke_token, rotate_token
from wallet.models import Transfer
from wallet.selectors import balance_of

pytestmark = pytest.mark.django_db
URL = "/admin/tokens/accesstoken/"


def staff(*permissions: str) -> Any:
    user = user_with(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_accesstoken", *permissions]))
    return staff_client(user)


@pytest.fixture
def superuser() -> Any:
    return staff_client(user_with(is_staff=True, is_superuser=True))


def act(client: Any, action: str, *tokens: AccessToken, **form: str) -> Any:
    body = {"action": action, "_selected_action": [str(token.pk) for token in tokens], **form}
    return client.post(URL, body, follow=True)


def test_the_list_shows_what_staff_need_and_no_secret(superuser):
    bought = token_of_new_user(24, scope="certificates_only", label="lathe")
    page = superuser.get(URL).content.decode()
    for shown in (bought.token.hint, bought.token.owner.username, "certificates_only", "Ready", "18.00", "lathe"):
        assert shown in page
    detail = superuser.get(f"{URL}{bought.token.pk}/change/").content.decode()
    for hidden in (bought.secret, bought.token.digest):
        assert hidden not in page
        assert hidden not in detail


@pytest.mark.parametrize("status", [*AccessToken.Status.values, ""])
def test_filtered_by_status(superuser, status):
    names = AccessToken.Status.values
    tokens = {name: token_of_new_user(24, label=f"label-{name}").token for name in names if name != "scheduled"}
    activate_so_that(tokens["active"], seconds_left=60)
    activate_so_that(tokens["expired"], seconds_left=-1)
    revoke_token(token_id=tokens["revoked"].id, actor=None, refund=True)
    renewed = renewing_token(seconds_left=60, label="renewed").token
    renew_token(token_id=renewed.id)
    AccessToken.objects.filter(predecessor=renewed).update(label="label-scheduled")
    offer_gift(token_id=tokens["gifted"].id, giver=tokens["gifted"].owner)
    page = superuser.get(URL, {"status": status}).content.decode()
    shown = {name for name in names if f"label-{name}" in page}
    assert shown == ({status} if status else set(names))


def test_searched_by_owner_hint_and_id(superuser):
    wanted, other = token_of_new_user(24).token, token_of_new_user(24).token
    for query in (wanted.owner.email, wanted.owner.username, wanted.last_four, str(wanted.pk)):
        page = superuser.get(URL, {"q": query}).content.decode()
        assert wanted.owner.username in page
    assert other.owner.username not in superuser.get(URL, {"q": str(wanted.pk)}).content.decode()
    assert superuser.get(URL, {"q": "no such thing"}).status_code == 200


def test_the_list_takes_a_fixed_number_of_queries(superuser):
    counts = []
    for _ in range(2):
        token_of_new_user(24)
        with CaptureQueriesContext(connection) as queries:
            superuser.get(URL)
        counts.append(len(queries))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("action", "balance"), [("revoke_with_refund", "18.00"), ("revoke_without_refund", "0.00")])
def test_revoking_asks_for_a_reason_first(superuser, action, balance):
    token = token_of_new_user(24, balance="18.00").token
    asked = act(superuser, action, token)
    assert asked.status_code == 200
    assert token.hint in asked.content.decode()
    for reason in ("", "   ", "x" * 256):
        refused = act(superuser, action, token, confirm="yes", reason=reason)
        assert "errorlist" in refused.content.decode()
    token.refresh_from_db()
    assert token.revoked_at is None

    done = act(superuser, action, token, confirm="yes", reason="lost laptop")
    assert f"{balance} ZNC paid back" in done.content.decode() or balance == "0.00"
    token.refresh_from_db()
    assert (token.status(), token.revoked_reason) == ("revoked", "lost laptop")
    assert balance_of(token.owner).balance == Decimal(balance)
    assert Transfer.objects.filter(kind="REFUND").count() == (1 if Decimal(balance) else 0)
    assert "lost laptop" in LogEntry.objects.get().change_message


def test_one_that_cannot_be_revoked_holds_up_none_of_the_others(superuser):
    first, gone, last = (token_of_new_user(24, balance="18.00").token for _ in range(3))
    revoke_token(token_id=gone.id, actor=None, refund=True)
    page = act(superuser, "revoke_with_refund", first, gone, last, confirm="yes", reason="r").content.decode()
    assert "The token is revoked already." in page
    assert "2 tokens revoked, 36.00 ZNC paid back." in page
    assert {token.status() for token in AccessToken.objects.all()} == {AccessToken.Status.REVOKED}
    nothing = act(superuser, "revoke_with_refund", gone, confirm="yes", reason="r").content.decode()
    assert "paid back" not in nothing


@pytest.mark.parametrize("action", ["revoke_with_refund", "revoke_without_refund"])
def test_each_action_has_its_own_permission(action):
    token = token_of_new_user(24).token
    other = {"revoke_with_refund", "revoke_without_refund"} - {action}
    for client in (staff(), staff(*other)):
        assert f'value="{action}"' not in client.get(URL).content.decode()
        act(client, action, token, confirm="yes", reason="r")
        token.refresh_from_db()
        assert token.revoked_at is None
    act(staff(action), action, token, confirm="yes", reason="r")
    token.refresh_from_db()
    assert token.revoked_at is not None


def test_a_token_is_neither_added_nor_edited_nor_deleted(superuser):
    token = token_of_new_user(24).token
    before = list(AccessToken.objects.values())
    for url in (f"{URL}add/", f"{URL}{token.pk}/change/", f"{URL}{token.pk}/delete/"):
        assert superuser.post(url, {"paid": "1000.00", "post": "yes"}).status_code == 403
    act(superuser, "delete_selected", token, post="yes")
    assert list(AccessToken.objects.values()) == before


def test_durations_are_added_and_switched_off_but_a_price_is_not_edited(superuser):
    add = "/admin/tokens/tokenprice/add/"
    form = {"duration_hours": 48, "price": "34.00", "is_active": "on"}
    for refused in ("0", "-1", "1.001", "x"):
        assert superuser.post(add, {**form, "price": refused}).status_code == 200
    assert superuser.post(add, form).status_code == 302
    price = TokenPrice.objects.get(duration_hours=48)
    change = f"/admin/tokens/tokenprice/{price.pk}/change/"
    assert superuser.get(change).status_code == 200
    assert superuser.post(change, {"price": "1.00", "duration_hours": 1}).status_code == 302
    price.refresh_from_db()
    assert (price.price, price.duration_hours, price.is_active) == (Decimal("34.00"), 48, False)
    assert superuser.get("/admin/tokens/tokenprice/").status_code == 200


def test_scopes_are_edited(superuser):
    scope = {"slug": "reports", "description": "Reports", "is_active": "on"}
    assert superuser.post("/admin/tokens/scope/add/", scope).status_code == 302
    superuser.post("/admin/tokens/scope/reports/change/", {"slug": "renamed", "description": "New"})
    assert list(Scope.objects.filter(description="New").values_list("slug", "is_active")) == [("reports", False)]


def test_a_rotated_digest_names_its_token():
    token = token_of_new_user().token
    rotate_token(token_id=token.id, owner=token.owner)
    assert str(token.id) in str(RotatedDigest.objects.get())


def test_devices_are_released_with_a_reason_and_a_permission():
    bought = token_of_new_user(24)
    AccessToken.objects.filter(pk=bought.token.pk).update(device_id="device-one")

    def holder() -> str:
        return AccessToken.objects.get(pk=bought.token.pk).device_id

    act(staff(), "release_devices", bought.token, confirm="1", reason="lost")
    assert holder() == "device-one"
    client = staff("release_devices")
    assert "Reason" in act(client, "release_devices", bought.token).content.decode()
    act(client, "release_devices", bought.token, confirm="1", reason="")
    assert holder() == "device-one"
    assert "released" in act(client, "release_devices", bought.token, confirm="1", reason="lost").content.decode()
    assert holder() == ""
    assert "lost" in LogEntry.objects.get().change_message
    event = OutboxEvent.objects.get(event="token.device_released")
    assert (event.data["reason"], event.data["device_id"], event.user) == ("lost", None, bought.token.owner)
    assert event.data["actor_id"] is not None

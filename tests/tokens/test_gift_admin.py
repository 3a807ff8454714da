"""Gifts in the back office."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission

from tests.money import staff_client, user_with
from tests.tokens.gifts import offered, state
from tokens.models import AccessToken, Gift
from tokens.services import claim_gift

pytestmark = pytest.mark.django_db
URL = "/admin/tokens/gift/"


def staff(*permissions: str) -> Any:
    user = user_with(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_gift", *permissions]))
    return staff_client(user)


def act(client: Any, action: str, *gifts: Gift, **form: str) -> Any:
    body = {"action": action, "_selected_action": [str(gift.pk) for gift in gifts], **form}
    return client.post(URL, body, follow=True)


@pytest.fixture
def waiting() -> Gift:
    return offered(duration_hours=168).gift


def test_staff_see_the_gift_and_not_its_code():
    gift = offered(duration_hours=168, message="Enjoy", recipient_email="friend@example.com")
    client = staff("view_accesstoken")
    page = client.get(URL).content.decode()
    detail = client.get(f"{URL}{gift.gift.pk}/change/").content.decode()
    for shown in (gift.gift.code_hint, gift.gift.giver.username, "friend@example.com", "168", "Awaiting approval"):
        assert shown in page and shown in detail
    assert "Enjoy" in detail
    for hidden in (gift.code, gift.gift.code_digest):
        assert hidden not in page and hidden not in detail
    for query in (str(gift.gift.pk), str(gift.gift.token_id), gift.code[-4:], gift.gift.giver.email, "friend@"):
        assert gift.gift.code_hint in client.get(URL, {"q": query}).content.decode()
    assert gift.gift.code_hint not in client.get(URL, {"status__exact": "claimed"}).content.decode()


def test_the_token_says_who_paid(waiting):
    gift, friend = offered(), user_with()
    claim_gift(code=gift.code, claimer=friend)
    page = staff("view_accesstoken").get(f"/admin/tokens/accesstoken/{gift.gift.token_id}/change/").content.decode()
    assert friend.username in page and gift.gift.giver.username in page


@pytest.mark.parametrize(
    ("action", "status", "said"),
    [("approve", "pending", "1 gift approved."), ("reject", "rejected", "1 gift rejected.")],
)
def test_a_review_asks_for_a_reason_first(waiting, action, status, said):
    client = staff("review_gift")
    before = state()
    assert waiting.code_hint in act(client, action, waiting).content.decode()
    for reason in ("", "   ", "x" * 256):
        assert "errorlist" in act(client, action, waiting, confirm="yes", reason=reason).content.decode()
    assert state() == before

    assert said in act(client, action, waiting, confirm="yes", reason="known company").content.decode()

    waiting.refresh_from_db()
    assert (waiting.status, waiting.review_reason) == (status, "known company")
    assert (AccessToken.objects.get().held_at is None) == (action == "reject")
    assert "known company" in LogEntry.objects.get().change_message


def test_one_that_cannot_be_decided_holds_up_none_of_the_others(waiting):
    claimed = offered()
    claim_gift(code=claimed.code, claimer=user_with())
    other = offered(duration_hours=720).gift
    page = act(staff("review_gift"), "approve", waiting, claimed.gift, other, confirm="yes", reason="r")
    assert "The gift does not wait for approval." in page.content.decode()
    assert "2 gifts approved." in page.content.decode()
    again = act(staff("review_gift"), "reject", claimed.gift, confirm="yes", reason="r").content.decode()
    assert "The gift has been claimed already." in again and "rejected." not in again


@pytest.mark.parametrize("action", ["approve", "reject"])
def test_a_review_needs_its_permission(waiting, action):
    client = staff("change_gift", "delete_gift", "add_gift", "revoke_with_refund")
    before = state()
    assert f'value="{action}"' not in client.get(URL).content.decode()
    act(client, action, waiting, confirm="yes", reason="r")
    assert state() == before


def test_nobody_approves_their_own_gift():
    giver = user_with("100.00", is_staff=True, is_superuser=True)
    gift = offered(giver, duration_hours=168).gift
    before = state()
    page = act(staff_client(giver), "approve", gift, confirm="yes", reason="r").content.decode()
    assert "This is your own gift." in page
    assert state() == before


def test_a_gift_is_neither_added_nor_edited_nor_deleted(waiting):
    client = staff_client(user_with(is_staff=True, is_superuser=True))
    before = state()
    for url in (f"{URL}add/", f"{URL}{waiting.pk}/change/", f"{URL}{waiting.pk}/delete/"):
        assert client.post(url, {"status": "claimed", "post": "yes"}).status_code == 403
    act(client, "delete_selected", waiting, post="yes")
    assert state() == before

"""An account's tier sets how much its owner may ask of the API, and staff keep the tiers."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.exceptions import UserNotFound
from accounts.models import Tier
from accounts.services import set_tier
from tests.api import Api
from tests.factories import UserFactory
from tests.money import staff_client

pytestmark = pytest.mark.django_db
URL = "/admin/accounts/tier/"


def test_the_limit_is_the_tiers_from_the_next_request_on():
    user = UserFactory()
    api = Api(user)
    api.get("users/me")
    assert api.last["RateLimit-Policy"] == '"api";q=100;w=60'
    set_tier(user_id=user.pk, tier="premium", reason="test")
    api.get("users/me")
    assert api.last["RateLimit-Policy"] == '"api";q=500;w=60'
    assert api.last["RateLimit"].startswith('"api";r=498;')

    Tier.objects.filter(slug="premium").update(api_requests_per_minute=3)
    api.get("users/me")
    before = user.sign_in_sessions.count()
    api.get("users/me", status=429, code="rate_limited")
    assert api.last["RateLimit-Policy"] == '"api";q=3;w=60'
    assert user.sign_in_sessions.count() == before


def test_a_tier_without_a_number_of_its_own_has_the_platforms(settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "api": type(settings.RATE_LIMITS["api"])(7, 30)}
    api = Api(UserFactory())
    api.get("users/me")
    assert api.last["RateLimit-Policy"] == '"api";q=7;w=30'


def test_the_tier_comes_with_the_session():
    api = Api(UserFactory())
    with CaptureQueriesContext(connection) as queries:
        api.get("users/me")
    assert len(queries) == 1


def test_a_tier_is_set_once_and_told():
    user = UserFactory()
    assert set_tier(user_id=user.pk, tier="premium", reason="r") is True
    assert set_tier(user_id=user.pk, tier="premium", reason="r") is False
    user.refresh_from_db()
    assert (user.tier_id, str(user.tier)) == ("premium", "Premium")
    with pytest.raises(UserNotFound):
        set_tier(user_id=uuid.uuid4(), tier="premium", reason="r")


# --- the back office


def staff(*permissions: str) -> Any:
    user = UserFactory(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return staff_client(user)


def test_staff_add_change_and_delete_tiers_as_they_may():
    client = staff("view_tier", "add_tier", "change_tier", "delete_tier")
    form = {"slug": "gold", "name": "Gold", "monthly_price": "99.00", "api_requests_per_minute": "", "is_active": "on"}
    assert client.post(f"{URL}add/", {**form, "monthly_price": "-1"}).status_code == 200
    assert client.post(f"{URL}add/", {**form, "api_requests_per_minute": "0"}).status_code == 200
    assert not Tier.objects.filter(slug="gold").exists()
    assert client.post(f"{URL}add/", form).status_code == 302
    assert client.post(f"{URL}gold/change/", {**form, "slug": "silver", "monthly_price": "9.00"}).status_code == 302
    tier = Tier.objects.get(slug="gold")
    assert (tier.monthly_price, tier.api_requests_per_minute) == (Decimal("9.00"), None)
    assert client.get(URL).status_code == 200
    client.post(URL, {"action": "delete_selected", "_selected_action": ["gold"], "post": "yes"})
    assert Tier.objects.filter(slug="gold").exists()
    assert client.post(f"{URL}gold/delete/", {"post": "yes"}).status_code == 302
    assert not Tier.objects.filter(slug__in=["gold", "silver"]).exists()


def test_the_free_tier_stays_and_stays_free():
    client = staff("view_tier", "change_tier", "delete_tier")
    assert client.post(f"{URL}free/delete/", {"post": "yes"}).status_code == 403
    form = {"name": "Basic", "monthly_price": "5.00", "api_requests_per_minute": "60"}
    assert client.post(f"{URL}free/change/", form).status_code == 302
    free = Tier.objects.get(slug="free")
    assert (free.name, free.monthly_price, free.api_requests_per_minute, free.is_active) == (
        "Basic",
        Decimal("0.00"),
        60,
        True,
    )


def test_a_tier_that_somebody_has_is_not_deleted():
    set_tier(user_id=UserFactory().pk, tier="premium", reason="r")
    staff("view_tier", "delete_tier").post(f"{URL}premium/delete/", {"post": "yes"})
    assert Tier.objects.filter(slug="premium").exists()


def test_who_may_look_may_not_change():
    client = staff("view_tier")
    assert client.get(f"{URL}premium/change/").status_code == 200
    assert client.post(f"{URL}premium/change/", {"name": "x", "monthly_price": "0.00"}).status_code == 403
    assert client.post(f"{URL}add/", {"slug": "x", "name": "x", "monthly_price": "0.00"}).status_code == 403
    assert Tier.objects.get(slug="premium").name == "Premium"


def test_the_list_of_users_shows_the_tier_without_a_query_for_each():
    client = staff("view_user")
    counts = []
    for _ in range(2):
        user = UserFactory()
        set_tier(user_id=user.pk, tier="premium", reason="r")
        with CaptureQueriesContext(connection) as queries:
            page = client.get("/admin/accounts/user/").content.decode()
        assert "Premium" in page
        counts.append(len(queries))
    assert counts[0] == counts[1]

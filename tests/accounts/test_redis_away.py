"""While Redis is away nobody signs in unlimited, and service returns with it."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import SignInSession, User
from tests.api import Api
from tests.factories import PASSWORD, StaffFactory, UserFactory
from tests.redis_server import freeze, own_redis, start, thaw  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db


def refused_everywhere(api: Api, user) -> None:
    before = (User.objects.count(), SignInSession.objects.count())
    for route, body in {
        "auth/login": {"email": user.email, "password": PASSWORD},
        "auth/register": {"email": "new@example.com", "username": "newcomer", "password": PASSWORD},
        "auth/refresh": {"refresh_token": "zrt_x"},
    }.items():
        api.post(route, body, status=503, code="service_unavailable")
        assert int(api.last["Retry-After"]) >= 1
    api.patch("users/me", {"full_name": "changed"}, status=503, code="service_unavailable")
    assert (User.objects.count(), SignInSession.objects.count()) == before
    user.refresh_from_db()
    assert user.full_name == ""


def test_stopped_and_started_again(own_redis):  # noqa: F811
    user = UserFactory()
    api = Api(user)
    own_redis.stop()

    refused_everywhere(api, user)
    assert api.get("users/me")["id"] == str(user.pk), "reading needs no limit"

    start(own_redis)
    api.post("auth/login", {"email": user.email, "password": PASSWORD})


def test_frozen_and_thawed(own_redis):  # noqa: F811
    user = UserFactory()
    api = Api(user)
    freeze(own_redis)

    refused_everywhere(api, user)

    thaw(own_redis)
    api.post("auth/login", {"email": user.email, "password": PASSWORD})


def test_the_back_office_lets_nobody_in_meanwhile(own_redis):  # noqa: F811
    staff = StaffFactory()
    own_redis.stop()
    client = Client()

    response = client.post("/admin/login/", {"username": staff.email, "password": PASSWORD})

    assert response.status_code == 503
    assert response.json()["code"] == "service_unavailable"
    assert "_auth_user_id" not in client.session

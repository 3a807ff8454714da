"""The limit on signing in and registering, and what a caller cannot do about it."""

from __future__ import annotations

import ipaddress

import pytest

from accounts.models import SignInSession, User
from tests.api import Api
from tests.factories import PASSWORD, UserFactory

pytestmark = pytest.mark.django_db


def wrong(api: Api, *, status: int = 401, headers: dict[str, str] | None = None):
    return api.post("auth/login", {"email": "nobody@example.com", "password": "x"}, status=status, headers=headers)


def exhausted(address: str = "198.51.100.7") -> Api:
    api = Api(address=address)
    for _ in range(5):
        wrong(api)
    return api


def test_the_sixth_attempt_in_an_hour_is_refused():
    user = UserFactory()
    api = exhausted()

    api.post("auth/login", {"email": user.email, "password": PASSWORD}, status=429, code="rate_limited")

    assert api.last["RateLimit-Policy"] == '"auth";q=5;w=3600'
    assert api.last["RateLimit"].startswith('"auth";r=0;t=')
    assert 0 < int(api.last["Retry-After"]) <= 3600
    assert not SignInSession.objects.exists()


def test_every_answer_says_what_remains():
    api = Api()
    remaining = []
    for _ in range(5):
        wrong(api)
        remaining.append(api.last["RateLimit"].split(";")[1])
        assert not api.last.has_header("Retry-After")

    assert remaining == ["r=4", "r=3", "r=2", "r=1", "r=0"]


def test_registering_counts_with_signing_in():
    api = exhausted()

    api.post("auth/register", {"email": "a@example.com", "username": "abc", "password": PASSWORD}, status=429)

    assert not User.objects.exists()


def test_another_address_has_its_own_limit():
    exhausted("198.51.100.7")

    wrong(Api(address="198.51.100.8"))


def test_one_ipv6_subscriber_is_one_caller():
    exhausted("2001:db8:1:2::1")

    wrong(Api(address="2001:db8:1:2:ffff::9"), status=429)
    wrong(Api(address="2001:db8:1:3::1"))


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "CF-Connecting-IP"])
def test_a_header_of_the_caller_gets_around_nothing(header):
    api = exhausted()

    for number in range(3):
        wrong(api, status=429, headers={header: f"203.0.113.{number}"})


def test_a_trusted_proxy_says_who_calls(settings):
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    api = Api(address="10.1.2.3")
    for _ in range(5):
        wrong(api, headers={"X-Forwarded-For": "203.0.113.1"})

    wrong(api, status=429, headers={"X-Forwarded-For": "203.0.113.1"})
    wrong(api, headers={"X-Forwarded-For": "203.0.113.2"})
    # What the caller itself put before the proxy's report.
    wrong(api, status=429, headers={"X-Forwarded-For": "192.0.2.99, 203.0.113.1"})


def test_a_proxy_that_is_not_trusted_is_the_caller(settings):
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    api = exhausted("172.16.0.1")

    wrong(api, status=429, headers={"X-Forwarded-For": "203.0.113.50"})


def test_a_signed_in_user_is_limited_as_themselves(settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "api": type(settings.RATE_LIMITS["api"])(3, 60)}
    user, other = UserFactory(), UserFactory()
    api = Api(user)
    for _ in range(3):
        api.get("users/me")

    api.get("users/me", status=429, code="rate_limited")
    assert api.last["RateLimit-Policy"] == '"api";q=3;w=60'
    Api(other).get("users/me")


def test_superusers_are_not_limited(settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "api": type(settings.RATE_LIMITS["api"])(1, 60)}
    api = Api(UserFactory(is_superuser=True))

    for _ in range(3):
        api.get("users/me")

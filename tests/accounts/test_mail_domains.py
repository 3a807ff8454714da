"""Addresses of blocked mail domains are refused, where users register and where they change theirs."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model

from accounts.models import BlockedMailDomain
from accounts.selectors import mail_domain_is_blocked
from tests.api import Api
from tests.factories import PASSWORD, UserFactory
from tests.money import staff_client, user_with

pytestmark = pytest.mark.django_db
ADMIN = "/admin/accounts/blockedmaildomain/"


def body(email: str) -> dict[str, Any]:
    return {"email": email, "username": "newcomer", "password": PASSWORD}


def users() -> int:
    return get_user_model()._default_manager.count()


@pytest.mark.parametrize(
    "email",
    ["a@throwaway.example", "a@THROWAWAY.Example", "a@mx.throwaway.example", "a@a.b.throwaway.example"],
)
def test_nobody_registers_with_a_blocked_domain(email):
    BlockedMailDomain.objects.create(domain="throwaway.example")
    refused = Api().post("auth/register", body(email), status=400, code="mail_domain_blocked")
    assert list(refused["errors"]) == ["email"]
    assert users() == 0


@pytest.mark.parametrize("email", ["a@nothrowaway.example", "a@example", "a@throwaway.example.com"])
def test_domains_that_only_look_alike_are_not_blocked(email):
    BlockedMailDomain.objects.create(domain="throwaway.example")
    assert not mail_domain_is_blocked(email)


def test_a_domain_has_one_spelling():
    BlockedMailDomain.objects.create(domain="xn--e1afmkfd.example")
    assert mail_domain_is_blocked("a@пример.example")
    assert mail_domain_is_blocked("a@ПРИМЕР.example")


def test_nobody_changes_to_a_blocked_domain_but_who_has_one_may_stay():
    user = UserFactory(email="old@throwaway.example")
    BlockedMailDomain.objects.create(domain="throwaway.example")
    api = Api(user)
    change = {"email": "new@throwaway.example", "current_password": PASSWORD}
    api.patch("users/me", change, status=400, code="mail_domain_blocked")
    user.refresh_from_db()
    assert user.email == "old@throwaway.example"
    assert api.patch("users/me", {"full_name": "Somebody"})["full_name"] == "Somebody"


def test_where_somebody_registered_from_is_kept():
    Api(address="192.0.2.9").post("auth/register", body("a@example.com"), status=201)
    [user] = get_user_model()._default_manager.all()
    assert user.registered_from == "192.0.2.9"


def test_staff_block_domains():
    staff = staff_client(user_with(is_staff=True, is_superuser=True))
    assert staff.post(f"{ADMIN}add/", {"domain": "@Throwaway.EXAMPLE", "reason": "abuse"}).status_code == 302
    [blocked] = BlockedMailDomain.objects.all()
    assert (blocked.domain, blocked.reason) == ("throwaway.example", "abuse")
    for refused in ("throwaway.example", "not a domain", "a..b", "-a.example", "x@y.example", ""):
        assert staff.post(f"{ADMIN}add/", {"domain": refused}).status_code == 200
    assert BlockedMailDomain.objects.count() == 1
    assert staff.get(ADMIN).status_code == 200

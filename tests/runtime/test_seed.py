"""The first users of an empty installation."""

from __future__ import annotations

import re
from decimal import Decimal
from io import StringIO

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import call_command

from tests.factories import UserFactory
from tests.threads import run_at_once

pytestmark = pytest.mark.django_db(transaction=True)


def seed() -> str:
    output = StringIO()
    call_command("seed", stdout=output, stderr=output)
    return output.getvalue()


def test_the_first_run_makes_two_users_whose_printed_passwords_work():
    output = seed()

    passwords = dict(re.findall(r"(\S+@\S+) +(\S+)", output))
    users = {user.email: user for user in get_user_model().objects.all()}
    assert set(passwords) == set(users) == {"admin@example.com", "demo@example.com"}
    assert all(users[email].check_password(password) for email, password in passwords.items())
    assert len(set(passwords.values())) == 2
    assert (users["admin@example.com"].is_superuser, users["admin@example.com"].is_staff) == (True, True)
    assert (users["demo@example.com"].is_superuser, users["demo@example.com"].is_staff) == (False, False)
    account = apps.get_model("wallet", "Account").objects.get(user=users["demo@example.com"])
    assert account.balance == Decimal("100.00")


def test_later_runs_print_and_change_nothing():
    seed()
    before = list(get_user_model().objects.order_by("pk").values())

    assert seed() == ""
    assert list(get_user_model().objects.order_by("pk").values()) == before


def test_an_installation_with_users_is_left_alone():
    UserFactory()

    assert seed() == ""
    assert get_user_model().objects.count() == 1


def test_simultaneous_first_runs_seed_once():
    outputs = run_at_once(4, lambda _: seed())

    assert sorted(bool(output) for output in outputs) == [False, False, False, True]
    assert get_user_model().objects.count() == 2


def test_production_is_not_seeded(settings):
    settings.ENVIRONMENT = "production"

    assert "createsuperuser" in seed()
    assert not get_user_model().objects.exists()


def test_without_the_mock_provider_the_demo_user_has_no_balance(settings):
    settings.PAYMENT_PROVIDERS = []

    assert "demo@example.com" in seed()
    assert not apps.get_model("wallet", "Account").objects.filter(balance__gt=0).exists()

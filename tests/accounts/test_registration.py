"""Registering."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from rest_framework.test import APIClient

from accounts.services import register_user, registration, storing
from accounts.signals import user_registered
from notifications.models import OutboxEvent
from tests.api import Api
from tests.factories import PASSWORD, UserFactory
from tests.threads import run_at_once

User = get_user_model()

ADA = {"email": "Ada@Example.COM", "username": "ada", "password": PASSWORD}


def nothing_changed(users: int = 0) -> bool:
    return User.objects.count() == users and not OutboxEvent.objects.exists()


@pytest.mark.django_db
def test_a_new_user_is_stored_and_shown():
    body = Api().post("auth/register", {**ADA, "full_name": " Ada Lovelace "}, status=201)

    user = User.objects.get()
    assert body == {
        "id": str(user.pk),
        "email": "Ada@example.com",
        "username": "ada",
        "full_name": "Ada Lovelace",
        "language": "en",
        "is_active": True,
        "is_superuser": False,
        "referral_code": user.referral_code,
        "created_at": user.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "updated_at": user.updated_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    assert user.check_password(PASSWORD)
    assert user.password.startswith("argon2$")
    assert len(user.referral_code) == 12 and user.referral_code.isalnum() and user.referral_code.isupper()


@pytest.mark.django_db
def test_the_event_and_the_signal_share_the_transaction():
    seen = []

    def receiver(*, user, **_):
        seen.append((user.pk, User.objects.filter(pk=user.pk).exists()))

    user_registered.connect(receiver)
    try:
        Api().post("auth/register", ADA, status=201)
    finally:
        user_registered.disconnect(receiver)

    user = User.objects.get()
    event = OutboxEvent.objects.get()
    assert seen == [(user.pk, True)]
    assert (event.event, event.user) == ("user.registered", user)
    assert PASSWORD not in str(event.data)


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_fails_takes_the_user_back():
    def receiver(**_):
        raise RuntimeError("no account for you")

    user_registered.connect(receiver)
    try:
        with pytest.raises(RuntimeError):
            register_user(email="ada@example.com", username="ada", password=PASSWORD)
    finally:
        user_registered.disconnect(receiver)

    assert nothing_changed()


@pytest.mark.django_db
def test_the_language_is_that_of_the_request():
    body = Api().post("auth/register", ADA, status=201, headers={"Accept-Language": "ru-RU,ru;q=0.9"})

    assert body["language"] == "ru"


@pytest.mark.django_db
@pytest.mark.parametrize("as_typed", ["{}", " {} ", "lower"])
def test_a_referral_code_names_the_referrer(as_typed):
    referrer = UserFactory()
    code = referrer.referral_code.lower() if as_typed == "lower" else as_typed.format(referrer.referral_code)

    body = Api().post("auth/register", {**ADA, "referral_code": code}, status=201)

    user = User.objects.get(pk=body["id"])
    assert user.referred_by == referrer
    assert OutboxEvent.objects.get().data["referred_by"] == str(referrer.pk)


@pytest.mark.django_db
@pytest.mark.parametrize("code", ["", "  ", None])
def test_no_referral_code_is_no_referrer(code):
    Api().post("auth/register", {**ADA, "referral_code": code}, status=201)

    assert User.objects.get().referred_by is None


@pytest.mark.django_db
@pytest.mark.parametrize("code", ["AAAAAAAAAAAA", "x", "'; drop table", "disabled"])
def test_an_unknown_referral_code_is_refused(code):
    referrer = UserFactory(is_active=False)
    code = referrer.referral_code if code == "disabled" else code

    body = Api().post("auth/register", {**ADA, "referral_code": code}, status=400, code="unknown_referral_code")

    assert list(body["errors"]) == ["referral_code"]
    assert nothing_changed(users=1)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "USER@example.com"),
        ("email", " user@EXAMPLE.com "),
        ("username", "TAKEN"),
        ("username", "ｔａｋｅｎ"),
        ("username", " taken "),
    ],
)
def test_a_duplicate_in_any_case_names_the_field(field, value):
    UserFactory(email="user@example.com", username="taken")

    body = Api().post("auth/register", {**ADA, field: value}, status=400, code="validation_error")

    assert list(body["errors"]) == [field]
    assert nothing_changed(users=1)


@pytest.mark.django_db
def test_both_duplicates_are_named_at_once():
    UserFactory(email="ADA@example.com", username="Ada")

    body = Api().post("auth/register", ADA, status=400)

    assert set(body["errors"]) == {"email", "username"}


@pytest.mark.django_db
def test_an_address_of_look_alike_letters_is_the_address_it_looks_like():
    """The Kelvin sign matches the letter k when case is ignored."""
    UserFactory(email="mike@example.com")

    Api().post("auth/register", {**ADA, "email": "mi\u212ae@example.com"}, status=400)

    assert nothing_changed(users=1)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "no-at-sign"),
        ("email", "a@b"),
        ("email", ""),
        ("email", "a b@example.com"),
        ("email", f"{'a' * 250}@example.com"),
        ("username", "ab"),
        ("username", "  a  "),
        ("username", "x" * 51),
        ("username", "\ufdfa" * 10),
        ("username", "ab\u200bcd"),
        ("username", "ab\ncd"),
        ("username", "\u3164\u3164\u3164"),
        ("username", "ab\u202ecd"),
        ("password", "short1!"),
        ("password", "password123"),
        ("password", "8273645172"),
        ("password", "adaadaada" * 20),
        ("password", "ada@example.com"),
        ("full_name", "x" * 151),
        ("full_name", "Ada\x07"),
        ("referral_code", "x" * 33),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused(field, value):
    body = Api().post("auth/register", {**ADA, field: value}, status=400, code="validation_error")

    assert list(body["errors"]) == [field]
    assert nothing_changed()


@pytest.mark.django_db
def test_what_registration_may_not_set_is_ignored():
    body = Api().post(
        "auth/register",
        {**ADA, "is_superuser": True, "is_staff": True, "id": "x", "is_active": False, "unknown": [1]},
        status=201,
    )

    user = User.objects.get()
    assert (user.is_superuser, user.is_staff, user.is_active) == (False, False, True)
    assert body["id"] == str(user.pk)


@pytest.mark.django_db
def test_names_in_other_scripts_are_welcome():
    names = {"username": "Ада Лавлейс", "full_name": "می\u200cخواهم 艾達"}

    body = Api().post("auth/register", {**ADA, **names}, status=201)

    assert {name: body[name] for name in names} == names


@pytest.mark.django_db
def test_a_password_keeps_its_spaces():
    Api().post("auth/register", {**ADA, "password": "  spaces around  "}, status=201)

    assert User.objects.get().check_password("  spaces around  ")


def _register_at_once(count: int) -> list[str]:
    """Register the same person from many threads at once; returns status and fields at fault of each answer."""

    def attempt(number):
        response = APIClient().post("/api/v1/auth/register", ADA, format="json")
        return f"{response.status_code} {','.join(response.json().get('errors', {}))}".strip()

    return run_at_once(count, attempt)


@pytest.mark.django_db(transaction=True)
def test_of_simultaneous_registrations_one_wins(settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "auth": type(settings.RATE_LIMITS["auth"])(1000, 60)}

    outcomes = _register_at_once(12)

    assert outcomes.count("201") == 1
    assert all(outcome.startswith("400 ") and "email" in outcome for outcome in outcomes if outcome != "201")
    assert User.objects.count() == 1
    assert OutboxEvent.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_without_the_first_look_the_index_still_decides(settings, monkeypatch):
    """Everybody finds the address free; what is left is the unique index and how its refusal is read."""
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "auth": type(settings.RATE_LIMITS["auth"])(1000, 60)}
    monkeypatch.setattr(storing.selectors, "duplicates", lambda user: [])

    outcomes = _register_at_once(8)

    assert sorted(outcomes) == ["201"] + ["400 email"] * 7
    assert User.objects.count() == 1


@pytest.mark.django_db
def test_another_broken_constraint_is_not_taken_for_a_duplicate():
    user = UserFactory.build()
    user.referred_by = user

    with pytest.raises(storing.IntegrityError):
        registration.add_user(user=user, actor=None)

    assert nothing_changed()

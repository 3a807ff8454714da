"""/users/me"""

from __future__ import annotations

import pytest

from accounts import services
from accounts.exceptions import WrongPassword
from accounts.models import SignInSession, User
from notifications.models import OutboxEvent
from tests.accounts.test_sign_in import held_while_user_is_locked
from tests.api import Api
from tests.factories import PASSWORD, UserFactory

pytestmark = pytest.mark.django_db

NEW_PASSWORD = "another correct horse"


@pytest.fixture
def user():
    return UserFactory(email="ada@example.com", username="ada", full_name="Ada")


@pytest.fixture
def api(user):
    return Api(user)


@pytest.fixture
def elsewhere(user):
    """The same user, signed in on another device."""
    return services.sign_in(email=user.email, password=PASSWORD)


def unchanged(user) -> bool:
    before = {name: getattr(user, name) for name in ("email", "full_name", "language", "password", "updated_at")}
    user.refresh_from_db()
    return before == {name: getattr(user, name) for name in before}


def test_everything_of_the_user_is_shown_and_no_secret(api, user):
    body = api.get("users/me")

    assert set(body) == {
        "id",
        "email",
        "username",
        "full_name",
        "language",
        "is_active",
        "is_superuser",
        "referral_code",
        "created_at",
        "updated_at",
    }
    assert user.password not in api.last.content.decode()


def test_the_trailing_slash_is_optional(api):
    assert api.get("users/me") == api.get("users/me/")


def test_name_and_language_change_without_the_password(api, user, elsewhere):
    body = api.patch("users/me", {"full_name": " Ada King ", "language": "ru"})

    assert (body["full_name"], body["language"]) == ("Ada King", "ru")
    user.refresh_from_db()
    assert (user.full_name, user.language) == ("Ada King", "ru")
    assert body["updated_at"] > body["created_at"]
    assert SignInSession.objects.alive().count() == 2


def test_what_is_not_given_stays(api, user):
    api.patch("users/me", {"language": "ru"})

    user.refresh_from_db()
    assert (user.full_name, user.email, user.username) == ("Ada", "ada@example.com", "ada")


def test_nothing_given_is_nothing_changed(api):
    api.patch("users/me", {})

    assert not OutboxEvent.objects.exists()


@pytest.mark.parametrize(
    "field",
    [
        {"referral_code": "AAAAAAAAAAAA"},
        {"is_superuser": True},
        {"is_staff": True},
        {"is_active": False},
        {"username": "root"},
        {"id": "00000000-0000-4000-8000-000000000000"},
        {"created_at": "2000-01-01T00:00:00Z"},
        {"nonsense": {"deep": [1]}},
    ],
)
def test_what_may_not_be_set_is_ignored(api, field):
    before = api.get("users/me")

    after = api.patch("users/me", field)

    assert {**after, "updated_at": before["updated_at"]} == before


@pytest.mark.parametrize("change", [{"password": NEW_PASSWORD}, {"email": "king@example.com"}])
def test_password_and_address_need_the_current_password(api, user, elsewhere, change):
    body = api.patch("users/me", change, status=400, code="validation_error")
    assert list(body["errors"]) == ["current_password"]
    body = api.patch("users/me", {**change, "current_password": "wrong"}, status=400, code="wrong_password")
    assert list(body["errors"]) == ["current_password"]

    assert unchanged(user)
    assert SignInSession.objects.alive().count() == 2
    assert not OutboxEvent.objects.exists()


@pytest.mark.parametrize(
    ("change", "event"),
    [
        ({"password": NEW_PASSWORD}, "user.password_changed"),
        ({"email": "King@Example.com"}, "user.email_changed"),
    ],
)
def test_a_new_password_or_address_ends_every_other_session(api, user, elsewhere, change, event):
    api.patch("users/me", {**change, "current_password": PASSWORD})

    api.get("users/me")
    other = Api()
    other.use(elsewhere.access_token)
    other.get("users/me", status=401, code="invalid_access_token")
    other.post("auth/refresh", {"refresh_token": elsewhere.refresh_token}, status=401, code="invalid_refresh_token")
    assert SignInSession.objects.get(pk=elsewhere.session.pk).end_reason == "credentials_changed"
    assert OutboxEvent.objects.get().event == event
    assert NEW_PASSWORD not in str(OutboxEvent.objects.get().data)
    signed_in = services.sign_in(email=change.get("email", user.email), password=change.get("password", PASSWORD))
    assert signed_in.session.user_id == user.pk


def test_the_same_address_again_changes_nothing_for_other_sessions(api, user, elsewhere):
    api.patch("users/me", {"email": user.email, "current_password": PASSWORD})

    assert SignInSession.objects.alive().count() == 2
    assert not OutboxEvent.objects.exists()


def test_the_case_of_the_own_address_may_change(api, user):
    assert (
        api.patch("users/me", {"email": "ADA@example.com", "current_password": PASSWORD})["email"] == "ADA@example.com"
    )


def test_the_address_of_another_is_refused(api, user, elsewhere):
    UserFactory(email="king@example.com")

    body = api.patch("users/me", {"email": "KING@example.com", "current_password": PASSWORD}, status=400)

    assert list(body["errors"]) == ["email"]
    assert unchanged(user)
    assert SignInSession.objects.alive().count() == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("password", "short"),
        ("password", "password123"),
        ("password", "ada@example.com"),
        ("email", "nonsense"),
        ("language", "xx"),
        ("language", None),
        ("full_name", "x" * 151),
        ("full_name", None),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused(api, user, elsewhere, field, value):
    body = api.patch("users/me", {field: value, "current_password": PASSWORD}, status=400, code="validation_error")

    assert list(body["errors"]) == [field]
    assert unchanged(user)
    assert SignInSession.objects.alive().count() == 2


def test_guessing_the_current_password_is_limited(api, user):
    for _ in range(5):
        api.patch("users/me", {"password": NEW_PASSWORD, "current_password": "guess"}, status=400)

    api.patch("users/me", {"password": NEW_PASSWORD, "current_password": PASSWORD}, status=429, code="rate_limited")

    assert unchanged(user)
    api.patch("users/me", {"full_name": "Still here"})


@pytest.mark.django_db(transaction=True)
def test_a_password_changed_meanwhile_is_asked_for_anew():
    """A thief who is changing the password while the owner does must not win by having been checked first."""
    user = UserFactory()

    def meanwhile(locked):
        locked.set_password(NEW_PASSWORD)
        locked.save()

    def attempt():
        services.update_profile(
            user=User.objects.get(pk=user.pk), session=None, password="the thief's own", current_password=PASSWORD
        )

    assert held_while_user_is_locked(user, meanwhile, attempt, WrongPassword) is False
    user.refresh_from_db()
    assert user.check_password(NEW_PASSWORD)

"""Users in the back office."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from accounts import services
from accounts.models import SignInSession, User
from accounts.services import storing
from accounts.signals import user_access_changed
from notifications.models import OutboxEvent
from tests.api import Api
from tests.factories import PASSWORD, StaffFactory, SuperuserFactory, UserFactory

pytestmark = pytest.mark.django_db

LIST = reverse("admin:accounts_user_changelist")
ADD = reverse("admin:accounts_user_add")
NEW_PASSWORD = "another correct horse"


def change_url(user) -> str:
    return reverse("admin:accounts_user_change", args=[user.pk])


def signed_in_as(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


def staff_with(*permissions: str):
    staff = StaffFactory()
    staff.user_permissions.set(Permission.objects.filter(content_type__app_label="accounts", codename__in=permissions))
    return staff


@pytest.fixture
def superuser():
    return SuperuserFactory()


@pytest.fixture
def office(superuser):
    return signed_in_as(superuser)


def form_of(user, **changes) -> dict[str, object]:
    fields = {"email": user.email, "username": user.username, "full_name": user.full_name, "language": user.language}
    return {**fields, **changes}


@pytest.mark.parametrize("typed", ["staff@example.com", "STAFF@Example.com"])
def test_staff_sign_in_by_address_in_any_case(typed):
    StaffFactory(email="Staff@example.com")
    client = Client()

    response = client.post("/admin/login/?next=/admin/", {"username": typed, "password": PASSWORD})

    assert (response.status_code, response["Location"]) == (302, "/admin/")


def test_guessing_is_limited_with_signing_in_to_the_api():
    staff = StaffFactory()
    client, api = Client(), Api()
    for _ in range(3):
        client.post("/admin/login/", {"username": staff.email, "password": "guess"})
    for _ in range(2):
        api.post("auth/login", {"email": staff.email, "password": "guess"}, status=401)

    response = client.post("/admin/login/", {"username": staff.email, "password": PASSWORD})

    assert "Too many attempts. Please try again in 60 minutes." in response.content.decode()
    assert int(response["Retry-After"]) > 3500
    assert "_auth_user_id" not in client.session


@pytest.mark.parametrize("username", ["", "nobody@example.com", "a\x00b", "\ud7ff", "x" * 10_000])
def test_no_name_breaks_the_sign_in(username):
    response = Client().post("/admin/login/", {"username": username, "password": PASSWORD})

    assert response.status_code == 200


@pytest.mark.parametrize("who", ["user", "disabled"])
def test_others_stay_outside(who):
    user = UserFactory() if who == "user" else StaffFactory(is_active=False)
    client = Client()

    client.post("/admin/login/", {"username": user.email, "password": PASSWORD})

    assert "_auth_user_id" not in client.session


def test_the_list_shows_who_there_is_with_a_fixed_number_of_queries(office, django_assert_max_num_queries):
    for _ in range(20):
        UserFactory()

    with django_assert_max_num_queries(8):
        page = office.get(LIST).content.decode()

    assert "user" in page and "@example.com" in page


@pytest.mark.parametrize("part", ["email", "username", "full_name", "referral_code", "id"])
def test_a_user_is_found(office, part):
    wanted = UserFactory(email="wanted@example.com", username="wanted", full_name="Wanted Person")
    UserFactory(email="other@example.org", username="bystander")

    page = office.get(LIST, {"q": str(getattr(wanted, part))}).content.decode()

    assert "wanted@example.com" in page
    assert "bystander" not in page


def test_no_hash_of_a_password_is_shown(office, superuser):
    user = UserFactory(referred_by=superuser)

    page = office.get(change_url(user)).content.decode()

    assert user.referral_code in page
    assert superuser.username in page
    for part in (user.password, user.password.split("$")[-1], "argon2", "salt"):
        assert part not in page


def test_sessions_are_shown_and_never_changed(office):
    session = services.sign_in(email=UserFactory().email, password=PASSWORD, address="198.51.100.7").session
    url = reverse("admin:accounts_signinsession_change", args=[session.pk])

    assert "198.51.100.7" in office.get(reverse("admin:accounts_signinsession_changelist")).content.decode()
    assert office.get(url).status_code == 200
    assert office.post(url, {"address": ""}).status_code == 403
    assert office.get(reverse("admin:accounts_signinsession_add")).status_code == 403
    assert office.post(reverse("admin:accounts_signinsession_delete", args=[session.pk])).status_code == 403


def new_user(**changes) -> dict[str, object]:
    fields = {
        "email": "New@Example.com",
        "username": " newcomer ",
        "full_name": "",
        "language": "en",
        "password1": PASSWORD,
        "password2": PASSWORD,
    }
    return {**fields, **changes}


def test_a_user_is_added_as_by_registering(office, superuser):
    assert office.post(ADD, new_user()).status_code == 302

    user = User.objects.get(username="newcomer")
    assert (user.email, user.is_staff, user.is_superuser) == ("New@example.com", False, False)
    event = OutboxEvent.objects.get(event="user.registered")
    assert (event.user, event.data["actor_id"]) == (user, str(superuser.pk))
    Api(user).get("users/me")


@pytest.mark.parametrize(
    "changes",
    [
        {"email": "TAKEN@example.com"},
        {"username": "Taken"},
        {"username": "ab\u200bcd"},
        {"username": "\ufdfa" * 10},
        {"password1": "password123", "password2": "password123"},
        {"password2": "different"},
        {"email": "nonsense"},
    ],
)
def test_a_user_that_breaks_a_rule_is_not_added(office, changes):
    UserFactory(email="taken@example.com", username="taken")

    response = office.post(ADD, new_user(**changes))

    assert response.status_code == 200
    assert User.objects.count() == 2
    assert not OutboxEvent.objects.exists()


def test_losing_a_race_for_the_name_is_told(office, monkeypatch):
    UserFactory(username="newcomer")
    # What the form saw before the other one was stored, which the index then decides.
    monkeypatch.setattr(storing.selectors, "duplicates", lambda user: [])
    monkeypatch.setattr(User, "validate_constraints", lambda self, exclude=None: None)

    response = office.post(ADD, new_user(), follow=True)

    assert "This username is already taken." in response.content.decode()
    assert User.objects.count() == 2


def test_editing_stores_what_was_edited(office, superuser):
    user = UserFactory()
    session = services.sign_in(email=user.email, password=PASSWORD).session

    response = office.post(change_url(user), form_of(user, full_name="Ada", is_staff="on", is_active=""))

    assert response.status_code == 302
    user.refresh_from_db()
    assert (user.full_name, user.is_staff, user.is_active) == ("Ada", True, True)
    event = OutboxEvent.objects.get(event="user.edited")
    assert event.data == {
        "user_id": str(user.pk),
        "actor_id": str(superuser.pk),
        "fields": ["full_name", "is_staff"],
    }
    assert SignInSession.objects.alive().filter(pk=session.pk).exists()


def test_another_address_ends_the_sessions(office):
    user = UserFactory()
    services.sign_in(email=user.email, password=PASSWORD)

    office.post(change_url(user), form_of(user, email="other@example.com"))

    user.refresh_from_db()
    assert user.email == "other@example.com"
    assert SignInSession.objects.get().end_reason == "credentials_changed"


def test_lifting_the_limits_of_a_user_is_told(office, django_capture_on_commit_callbacks):
    user, told = UserFactory(), []

    def receiver(*, user_id, **_):
        told.append(user_id)

    user_access_changed.connect(receiver)
    with django_capture_on_commit_callbacks(execute=True):
        office.post(change_url(user), form_of(user, is_superuser="on"))
    user_access_changed.disconnect(receiver)

    assert told == [user.pk]


def test_nothing_edited_is_nothing_recorded(office):
    user = UserFactory()

    office.post(change_url(user), form_of(user))

    assert not OutboxEvent.objects.exists()


def test_the_address_of_another_is_refused(office):
    user = UserFactory()
    UserFactory(email="taken@example.com")

    assert office.post(change_url(user), form_of(user, email="TAKEN@example.com")).status_code == 200

    assert User.objects.filter(email=user.email).exists()


def test_referral_fields_cannot_be_edited(office, superuser):
    user = UserFactory()
    code = user.referral_code

    office.post(change_url(user), form_of(user, referral_code="AAAAAAAAAAAA", referred_by=superuser.pk))

    user.refresh_from_db()
    assert (user.referral_code, user.referred_by) == (code, None)


def test_staff_cannot_make_themselves_more_than_they_are():
    staff = staff_with("view_user", "change_user", "add_user")
    client = signed_in_as(staff)

    client.post(change_url(staff), form_of(staff, is_superuser="on", full_name="Still staff"))

    staff.refresh_from_db()
    assert (staff.is_superuser, staff.full_name) == (False, "Still staff")
    assert not staff.groups.exists()


def test_staff_cannot_change_a_superuser(superuser):
    client = signed_in_as(staff_with("view_user", "change_user"))
    hash_before = superuser.password

    assert client.post(change_url(superuser), form_of(superuser, email="mine@example.com")).status_code == 403
    password_url = reverse("admin:auth_user_password_change", args=[superuser.pk])
    assert client.post(password_url, {"password1": NEW_PASSWORD, "password2": NEW_PASSWORD}).status_code == 403

    superuser.refresh_from_db()
    assert superuser.password == hash_before


def test_nobody_deletes_a_user(office):
    user = UserFactory()

    assert office.post(reverse("admin:accounts_user_delete", args=[user.pk]), {"post": "yes"}).status_code == 403
    assert "delete_selected" not in office.get(LIST).content.decode()
    assert User.objects.filter(pk=user.pk).exists()


def test_another_password_ends_the_sessions(office, superuser):
    user = UserFactory()
    services.sign_in(email=user.email, password=PASSWORD)
    url = reverse("admin:auth_user_password_change", args=[user.pk])
    assert office.get(url).status_code == 200

    assert office.post(url, {"password1": NEW_PASSWORD, "password2": NEW_PASSWORD}).status_code == 302

    user.refresh_from_db()
    assert user.check_password(NEW_PASSWORD)
    assert SignInSession.objects.get().end_reason == "credentials_changed"
    assert OutboxEvent.objects.get().data["actor_id"] == str(superuser.pk)


@pytest.mark.parametrize(
    "fields",
    [
        {"password1": "password123", "password2": "password123"},
        {"password1": NEW_PASSWORD, "password2": "different"},
        {},
        {"usable_password": "false"},
    ],
)
def test_a_password_that_breaks_a_rule_is_refused(office, fields):
    user = UserFactory()

    assert office.post(reverse("admin:auth_user_password_change", args=[user.pk]), fields).status_code == 200

    user.refresh_from_db()
    assert user.check_password(PASSWORD)


def act(client: Client, action: str, *users, **fields):
    return client.post(LIST, {"action": action, "_selected_action": [str(user.pk) for user in users], **fields})


def test_disabling_asks_for_a_reason_first(office):
    user = UserFactory()

    page = act(office, "disable", user)
    assert "Reason" in page.content.decode()
    assert act(office, "disable", user, confirm="1", reason=" ").status_code == 200

    user.refresh_from_db()
    assert user.is_active


def test_disabling_and_enabling(office, superuser):
    users = [UserFactory(), UserFactory()]
    api = Api(users[0])

    act(office, "disable", *users, confirm="1", reason="fraud")

    assert set(User.objects.filter(is_active=False)) == set(users)
    api.get("users/me", status=401)
    assert OutboxEvent.objects.filter(event="user.disabled", data__reason="fraud").count() == 2
    assert LogEntry.objects.filter(user=superuser, change_message__contains="fraud").count() == 2

    act(office, "enable", *users, confirm="1", reason="sorted out")

    assert not User.objects.filter(is_active=False).exists()


def test_disabling_oneself_is_refused_and_holds_up_no_other(office, superuser):
    user = UserFactory()

    response = act(office, "disable", superuser, user, confirm="1", reason="all of them")

    assert set(User.objects.filter(is_active=False)) == {user}
    assert response.status_code == 302
    assert "You cannot disable your own account." in office.get(LIST).content.decode()


def test_disabling_needs_its_own_permission():
    user = UserFactory()
    client = signed_in_as(staff_with("view_user", "change_user"))

    act(client, "disable", user, confirm="1", reason="because")

    user.refresh_from_db()
    assert user.is_active


def test_with_the_permission_staff_disable_users_but_no_superuser(superuser):
    user = UserFactory()
    client = signed_in_as(staff_with("view_user", "change_user", "set_user_active"))

    act(client, "disable", user, superuser, confirm="1", reason="because")

    assert set(User.objects.filter(is_active=False)) == {user}

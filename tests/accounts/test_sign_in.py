"""Signing in."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import jwt
import pytest
from django.contrib.auth.hashers import Argon2PasswordHasher, PBKDF2PasswordHasher
from django.db import connection, connections, transaction

from accounts import access_tokens, services
from accounts.exceptions import InvalidCredentials
from accounts.models import RefreshToken, SignInSession, User
from tests.api import Api
from tests.factories import PASSWORD, UserFactory
from tests.threads import run_at_once
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


def login(email: str, password: str = PASSWORD, **options):
    return Api().post("auth/login", {"email": email, "password": password}, **options)


@pytest.mark.parametrize("typed", ["ada@example.com", "ADA@EXAMPLE.com", " Ada@example.com "])
def test_the_address_counts_in_any_case(typed):
    user = UserFactory(email="Ada@example.com")

    body = login(typed)

    assert set(body) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert (body["token_type"], body["expires_in"]) == ("bearer", 900)
    api = Api()
    api.use(body["access_token"])
    assert api.get("users/me")["id"] == str(user.pk)
    user.refresh_from_db()
    assert user.last_login is not None


def test_a_session_knows_where_it_comes_from():
    user = UserFactory()

    Api(address="198.51.100.7").post(
        "auth/login", {"email": user.email, "password": PASSWORD}, headers={"User-Agent": "desktop/" + "x" * 500}
    )

    session = SignInSession.objects.get()
    assert (session.user, session.address) == (user, "198.51.100.7")
    assert session.user_agent == ("desktop/" + "x" * 500)[:255]


def test_tokens_are_not_for_caches():
    api = Api()
    api.post("auth/login", {"email": UserFactory().email, "password": PASSWORD})

    assert api.last["Cache-Control"] == "no-store"


def test_unknown_wrong_and_disabled_are_answered_alike():
    known, disabled = UserFactory(), UserFactory(is_active=False)

    answers = [
        login("nobody@example.com", status=401, code="invalid_credentials"),
        login(known.email, "wrong password", status=401, code="invalid_credentials"),
        login(disabled.email, status=401, code="invalid_credentials"),
        login("not an address", status=401, code="invalid_credentials"),
    ]

    assert len({answer["detail"] for answer in answers}) == 1
    assert not SignInSession.objects.exists()


def test_a_refusal_names_the_scheme():
    api = Api()
    api.post("auth/login", {"email": "nobody@example.com", "password": "x"}, status=401)

    assert api.last["WWW-Authenticate"] == "Bearer"


class CountingHasher(Argon2PasswordHasher):
    """Argon2 that counts how often it does its work, which is what the time of an answer is made of."""

    time_cost = 1
    memory_cost = 8
    parallelism = 1
    runs = 0

    def encode(self, password, salt):
        CountingHasher.runs += 1
        return super().encode(password, salt)

    def verify(self, password, encoded):
        CountingHasher.runs += 1
        return super().verify(password, encoded)


@pytest.mark.parametrize("who", ["unknown", "wrong", "disabled", "without a password"])
def test_every_refusal_costs_one_hash(settings, who):
    settings.PASSWORD_HASHERS = [f"{__name__}.CountingHasher"]
    user = UserFactory(is_active=who != "disabled")
    if who == "without a password":
        user.set_unusable_password()
        user.save()
    email = "nobody@example.com" if who == "unknown" else user.email
    CountingHasher.runs = 0

    login(email, PASSWORD if who == "disabled" else "wrong password", status=401)

    assert CountingHasher.runs == 1


def test_an_old_hash_is_renewed_and_signing_in_still_works(settings):
    settings.PASSWORD_HASHERS = ["tests.hashers.CheapArgon2PasswordHasher", f"{__name__}.FewRounds"]
    user = UserFactory(password=FewRounds().encode(PASSWORD, "saltsaltsaltsaltsaltsalt"))

    login(user.email)

    user.refresh_from_db()
    assert user.password.startswith("argon2$")


class FewRounds(PBKDF2PasswordHasher):
    iterations = 10


def test_the_access_token_says_whose_it_is_and_for_how_long():
    user = UserFactory()
    body = login(user.email)

    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    session = SignInSession.objects.get()
    assert (claims["sub"], claims["sid"]) == (str(user.pk), str(session.pk))
    assert claims["exp"] - claims["iat"] == 900
    assert len(claims["jti"]) == 32


def test_nothing_secret_is_stored():
    body = login(UserFactory().email)

    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(t)::text FROM accounts_refreshtoken t")
        [(row,)] = cursor.fetchall()
        cursor.execute("SELECT row_to_json(s)::text FROM accounts_signinsession s")
        [(session,)] = cursor.fetchall()
    secret = body["refresh_token"]
    for text in (secret, secret.removeprefix("zrt_"), secret.encode().hex(), body["access_token"]):
        assert text not in row and text not in session
    assert len(secret) > 40


def _tampered(token: str) -> str:
    head, payload, signature = token.split(".")
    return f"{head}.{payload}.{signature[:-4]}{'AAAA' if signature[-4:] != 'AAAA' else 'BBBB'}"


def _claims(token: str) -> dict:
    return jwt.decode(token, options={"verify_signature": False})


@pytest.mark.parametrize(
    "credentials",
    [
        lambda token: f"Bearer {_tampered(token)}",
        lambda token: f"Bearer {jwt.encode(_claims(token), '', algorithm='none')}",
        lambda token: f"Bearer {jwt.encode(_claims(token), 'x' * 40, algorithm='HS256')}",
        lambda token: "Bearer ",
        lambda token: "Bearer",
        lambda token: "Bearer null",
        lambda token: "Bearer a.b.c",
        lambda token: f"Bearer {token} {token}",
        lambda token: "Bearer \xff\xfe",
        lambda token: "Bearer " + "x" * 5000,
    ],
)
def test_a_credential_that_is_not_ours_is_refused(credentials):
    api = Api()
    token = api.sign_in(UserFactory()).access_token

    api.client.credentials(HTTP_AUTHORIZATION=credentials(token))

    api.get("users/me", status=401, code="invalid_access_token")
    assert api.last["WWW-Authenticate"] == "Bearer"


def _signed(**changes) -> str:
    session = services.sign_in(email=UserFactory().email, password=PASSWORD).session
    payload = _claims(access_tokens.issue(session)) | changes
    payload = {name: value for name, value in payload.items() if value is not None}
    return access_tokens._backend(_secret_key()).encode(payload)


def _secret_key() -> str:
    from django.conf import settings

    return settings.SECRET_KEY


@pytest.mark.parametrize(
    "changes",
    [
        {"token_type": "refresh"},
        {"token_type": None},
        {"exp": None},
        {"sub": None},
        {"sid": None},
        {"sub": "not-a-uuid"},
        {"sid": "00000000-0000-4000-8000-000000000000"},
        {"sub": "00000000-0000-4000-8000-000000000000"},
    ],
)
def test_our_own_signature_on_other_claims_is_refused(changes):
    api = Api()
    api.use(_signed(**changes))

    api.get("users/me", status=401, code="invalid_access_token")


def test_an_unchanged_set_of_claims_is_accepted():
    """The control of the test above."""
    api = Api()
    api.use(_signed())

    api.get("users/me")


def test_an_expired_access_token_is_told_apart():
    api = Api()
    api.use(_signed(exp=int(clock.now().timestamp()) - 1))

    api.get("users/me", status=401, code="access_token_expired")


def test_no_credential_and_another_scheme_are_not_signed_in():
    api = Api()
    api.get("users/me", status=401, code="not_authenticated")
    assert api.last["WWW-Authenticate"] == "Bearer"
    api.get("users/me", status=401, code="not_authenticated", headers={"Authorization": "Basic YTpi"})


def test_an_expired_session_refuses_its_access_token():
    user = UserFactory()
    api = Api(user)
    past = clock.now() - timedelta(seconds=1)
    SignInSession.objects.update(last_used_at=past - timedelta(days=30), expires_at=past)

    api.get("users/me", status=401, code="invalid_access_token")


def test_authentication_costs_one_query(django_assert_num_queries):
    api = Api(UserFactory())

    with django_assert_num_queries(1):
        api.get("users/me")


def held_while_user_is_locked(user, meanwhile, attempt, refusal) -> bool:
    """Run ``attempt`` up to the lock of the user's row, then commit a change; did it pass, or was it refused?

    What it read before the lock, the password's hash above all, is then out of date.
    """
    result: list[bool] = []

    def run():
        try:
            attempt()
            result.append(True)
        except refusal:
            result.append(False)
        finally:
            connections.close_all()

    with transaction.atomic():
        locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
        thread = threading.Thread(target=run)
        thread.start()
        _wait_for_a_waiter()
        meanwhile(locked)
    thread.join(timeout=60)
    [passed] = result
    return passed


def _wait_for_a_waiter() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if cursor.fetchone()[0]:
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits for the user's row")


def _disable(user):
    user.is_active = False
    user.save()


def _change_password(user):
    user.set_password("another correct horse")
    user.save()


def _rehash(user):
    user.set_password(PASSWORD)
    user.save()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("meanwhile", "opened"), [(_disable, False), (_change_password, False), (_rehash, True)])
def test_a_change_during_sign_in_counts(meanwhile, opened):
    user = UserFactory()

    def attempt():
        services.sign_in(email=user.email, password=PASSWORD)

    assert held_while_user_is_locked(user, meanwhile, attempt, InvalidCredentials) is opened
    assert SignInSession.objects.count() == int(opened)


@pytest.mark.django_db(transaction=True)
def test_simultaneous_sign_ins_each_get_a_session():
    user = UserFactory()

    answers = run_at_once(6, lambda _: services.sign_in(email=user.email, password=PASSWORD))

    assert len({answer.refresh_token for answer in answers}) == 6
    assert SignInSession.objects.alive().count() == 6
    assert RefreshToken.objects.filter(generation=0).count() == 6

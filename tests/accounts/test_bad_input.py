"""What is sent to the accounts routes and should not be: refused with a code, and nothing changed."""

from __future__ import annotations

import json

import pytest

from accounts.models import RefreshToken, SignInSession, User
from notifications.models import OutboxEvent
from tests.api import Api
from tests.factories import PASSWORD, UserFactory

pytestmark = pytest.mark.django_db

REGISTER = {"email": "new@example.com", "username": "newcomer", "password": PASSWORD}
LOGIN = {"email": "known@example.com", "password": PASSWORD}
ROUTES = {
    "auth/register": REGISTER,
    "auth/login": LOGIN,
    "auth/refresh": {"refresh_token": "zrt_x"},
    "auth/logout": {"refresh_token": "zrt_x"},
    "users/me": {"full_name": "x", "email": "x@example.com", "password": "x" * 12, "current_password": PASSWORD},
}


@pytest.fixture
def api(settings):
    # The table is longer than the limit on signing in.
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "auth": type(settings.RATE_LIMITS["auth"])(1000, 60)}
    return Api(UserFactory(email="known@example.com"))


def state() -> tuple:
    return (
        list(User.objects.order_by("pk").values()),
        list(SignInSession.objects.order_by("pk").values()),
        RefreshToken.objects.count(),
        OutboxEvent.objects.count(),
    )


def send(api: Api, route: str, body: object, **options) -> dict:
    before = state()
    method = api.patch if route == "users/me" else api.post
    answer = method(route, body, **options)
    assert state() == before
    return answer


WRONG_TYPES = [None, True, 12345678, 1.5, [], ["x"], {}, {"a": 1}, 10**400]


@pytest.mark.parametrize("value", WRONG_TYPES, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(("route", "field"), [(route, field) for route, body in ROUTES.items() for field in body])
def test_a_wrong_type_is_refused(api, route, field, value):
    body = send(api, route, {**ROUTES[route], field: value}, status=400, code="validation_error")

    assert list(body["errors"]) == [field]


@pytest.mark.parametrize(("route", "field"), [(route, field) for route, body in ROUTES.items() for field in body])
def test_a_huge_string_is_refused(api, route, field):
    body = send(api, route, {**ROUTES[route], field: "x" * 100_000}, status=400, code="validation_error")

    assert list(body["errors"]) == [field]


@pytest.mark.parametrize(
    ("route", "field"),
    [
        ("auth/register", "email"),
        ("auth/register", "username"),
        ("auth/register", "password"),
        ("auth/login", "email"),
        ("auth/login", "password"),
        ("auth/refresh", "refresh_token"),
    ],
)
@pytest.mark.parametrize("missing", ["absent", "empty"])
def test_a_missing_field_is_named(api, route, field, missing):
    body = dict(ROUTES[route])
    if missing == "absent":
        del body[field]
    else:
        body[field] = ""

    assert list(send(api, route, body, status=400, code="validation_error")["errors"]) == [field]


MALFORMED = {
    "not JSON": b"email=a&password=b",
    "cut off": b'{"email": "a@example.com", ',
    "broken UTF-8": b'{"email": "\xff\xfe@example.com"}',
    "overlong UTF-8": b'{"email": "\xc0\xae@example.com"}',
    "UTF-16": '{"email": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"email": "a"}',
    "raw NUL": b'{"email": "a\x00@example.com"}',
    "escaped NUL": b'{"email": "a\\u0000@example.com"}',
    "NUL in a name": b'{"em\\u0000ail": "a"}',
    "NUL deep down": b'{"x": [{"y": ["\\u0000"]}]}',
    "lone surrogate": b'{"email": "\\ud800@example.com"}',
    "reversed surrogates": b'{"email": "\\udc00\\ud800"}',
    "NaN": b'{"email": NaN}',
    "Infinity": b'{"email": -Infinity}',
    "array": b'[{"email": "a"}]',
    "string": b'"email"',
    "number": b"1",
    "null": b"null",
    "true": b"true",
    "endless nesting": b'{"a":' * 100_000,
    "nesting at the interpreter's limit": b'{"a":' * 900 + b'"\\u0041"' + b"}" * 900,
    "deep nesting": b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
    "endless number": b'{"email": ' + b"9" * 5000 + b"}",
    "endless exponent": b'{"email": 1e99999999999999999999}',
    "two documents": b"{}{}",
    "comment": b'{"email": "a" /* b */}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("route", ["auth/register", "auth/login", "users/me"])
def test_a_malformed_body_is_refused(api, route, body):
    answer = send(api, route, body, status=400)

    assert answer["code"] in {"parse_error", "validation_error"}


@pytest.mark.parametrize("route", ROUTES)
def test_ten_megabytes_are_too_large(api, route):
    body = json.dumps({**ROUTES[route], "padding": "x" * 10_000_000}).encode()

    send(api, route, body, status=413, code="payload_too_large")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "nonsense",
    ],
)
def test_another_content_type_is_refused(api, route, content_type):
    body = json.dumps(ROUTES[route]).encode()

    send(api, route, body, content_type=content_type, status=415, code="unsupported_media_type")


@pytest.mark.parametrize("route", ["auth/register", "auth/login", "auth/refresh", "auth/logout"])
def test_another_method_is_refused(api, route):
    api.get(route, status=405, code="method_not_allowed")
    assert api.last["Allow"] == "POST, OPTIONS"


def test_duplicate_names_take_the_last(api):
    body = b'{"full_name": "first", "full_name": "last"}'

    assert api.patch("users/me", body)["full_name"] == "last"


@pytest.mark.parametrize("query", [{"limit": "-1"}, {"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"offset": "-1"}])
def test_a_page_out_of_range_is_refused(api, query):
    body = api.get("users/me/sessions", query, status=400, code="validation_error")

    assert list(body["errors"]) == list(query)


@pytest.mark.parametrize("agent", ["", "\x01\x7f", "x" * 10_000, "агент".encode().decode("latin-1")])
def test_any_user_agent_will_do(api, agent):
    api.post("auth/login", LOGIN, headers={"User-Agent": agent})

    assert SignInSession.objects.filter(user_agent=agent[:255]).exists()

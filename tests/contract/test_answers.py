"""What every answer has in common, asked of every operation of the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as project
from django.test import Client

from accounts import selectors as accounts_selectors
from tests.api import Api
from tests.contract.routes import Operation, is_for_staff, is_for_users, operations
from tests.factories import SuperuserFactory
from tests.money import activate_so_that, user_with
from tokens.services import purchase_token, revoke_token
from wallet import selectors as wallet_selectors

pytestmark = pytest.mark.django_db

OPERATIONS = operations()
API = [operation for operation in OPERATIONS if operation.path.startswith("/api/") and is_for_users(operation)]
#: Their parameters are their own, or they show numbers that are no money of ours; their own tests look at them.
_APART = {"/api/v1/currency/statement", "/api/v1/currency/rates", "/api/v1/currency/payments/{payment_id}"}
READS = [operation for operation in API if operation.method == "GET" and operation.path not in _APART]
#: The referrals are a summary with a list in it.
LISTS = [operation for operation in READS if "limit" in operation.query and "referrals" not in operation.path]
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}


@pytest.fixture
def user() -> Any:
    return user_with("1000.00")


@pytest.fixture
def token(user) -> Any:
    used = purchase_token(owner=user, duration_hours=24).token
    activate_so_that(used, seconds_left=3600)
    revoke_token(
        token_id=purchase_token(owner=user, duration_hours=1).token.pk, actor=user, owner=user, refund=True, reason="x"
    )
    return used


@pytest.fixture
def client(user) -> Client:
    return Client(
        raise_request_exception=False, headers={"Authorization": f"Bearer {Api().sign_in(user).access_token}"}
    )


def test_the_schema_is_what_is_tested():
    assert len(API) >= 20 and len(LISTS) >= 5


# --- one path, with and without the slash


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_the_slash_is_optional_and_never_a_redirect(many_requests, client, operation: Operation):
    statuses = {
        client.generic(operation.method, operation.url() + slash, b"{}", content_type="application/json").status_code
        for slash in ("", "/")
        if operation.path != "/api/v1/auth/logout"
    }

    assert len(statuses) <= 1
    assert not statuses & {301, 302, 307, 308}


# --- methods


@pytest.mark.parametrize("path", sorted({operation.path for operation in API}))
def test_other_methods_are_refused_and_the_right_ones_named(path):
    client: Any = Api(SuperuserFactory()).client
    known = {operation.method for operation in API if operation.path == path}
    url = next(operation.url() for operation in API if operation.path == path)
    for method in METHODS - known:
        response = client.generic(method, url, b"{}", content_type="application/json")
        allowed = set(response["Allow"].split(", "))
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
        assert allowed == known | {"OPTIONS"} | ({"HEAD"} if "GET" in known else set())

    options = client.options(url)
    assert options.status_code == 200 and options["X-Request-ID"]


@pytest.mark.parametrize("operation", READS, ids=str)
def test_head_is_get_without_its_body(client, token, operation: Operation):
    url = operation.url(token.pk)
    head, get = client.head(url), client.get(url)

    assert (head.status_code, head["Content-Type"]) == (get.status_code, get["Content-Type"])
    assert head.content == b""


@pytest.mark.parametrize("operation", READS, ids=str)
def test_an_answer_the_caller_does_not_accept(client, operation: Operation):
    response = client.get(operation.url(), headers={"Accept": "text/html"})

    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")


# --- errors outside the API


@pytest.mark.parametrize(
    "path", ["/nothing", "/api", "/api/v1", "/api/v1/nothing/", "/static/nothing.css", "/%00", "/health/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_an_unknown_route(client, path, method):
    response = client.generic(method, path)
    body = response.json()

    assert (response.status_code, body["code"]) == (404, "not_found")
    assert body["request_id"] == response["X-Request-ID"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_a_static_file_is_read_only(client, method):
    response = client.generic(method, "/static/zenzefi/admin.css")

    assert (response.status_code, response["Allow"], response.json()["code"]) == (
        405,
        "GET, HEAD",
        "method_not_allowed",
    )
    assert response.json()["request_id"] == response["X-Request-ID"]


def test_a_host_that_is_not_ours(client):
    response = client.get("/api/v1/bundles", headers={"Host": "evil.example"})

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert response.json()["request_id"] == response["X-Request-ID"]


@pytest.mark.parametrize("language", ["en", "ru"])
def test_our_own_failure_shows_nothing_of_its_cause(monkeypatch, client, caplog, language):
    def broken(*args: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(wallet_selectors, "balance_of", broken)

    response = client.get(
        "/api/v1/currency/balance", headers={"X-Request-ID": "failing-1", "Accept-Language": language}
    )

    assert response.status_code == 500
    assert set(response.json()) == {"detail", "code", "request_id"}
    assert response.json()["code"] == "internal_error"
    assert response["X-Request-ID"] == response.json()["request_id"] == "failing-1"
    assert b"secret" not in response.content and b"Traceback" not in response.content
    assert "a secret of ours" in caplog.text


def test_a_failure_before_the_view_has_the_same_shape(monkeypatch, client):
    def broken(**kwargs: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(accounts_selectors, "live_session", broken)

    response = client.get("/api/v1/currency/balance")

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert response.json()["request_id"] == response["X-Request-ID"]


# --- values


def walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, name)
    else:
        yield name, value


MONEY = re.compile(r"(amount|balance|price|cost|owed|savings|refunded|total_price|znc)")
TIME = re.compile(r"(_at|timestamp)$")


@pytest.mark.parametrize("operation", READS, ids=str)
def test_money_is_a_string_with_two_places_and_time_is_utc(client, user, token, operation: Operation):
    url = operation.url(token.pk)
    response = client.get(url + ("?active_only=false" if "active_only" in operation.query else ""))
    if response.status_code == 404:
        from bundles.selectors import bundles

        response = client.get(operation.url(bundles(active_only=True)[0].pk))
    assert response.status_code == 200

    for name, value in walk(response.json()):
        assert not isinstance(value, float), name
        if MONEY.search(name) and value is not None:
            assert re.fullmatch(r"-?\d+\.\d\d", value), (name, value)
        if TIME.search(name) and value is not None:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", value), (name, value)
        if name == "id":
            assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value) or name != "id", value


# --- lists


@pytest.mark.parametrize("operation", LISTS, ids=str)
def test_a_list_has_its_four_parts_and_its_bounds(many_requests, client, token, operation: Operation):
    def get(query: str) -> Any:
        return client.get(f"{operation.url(token.pk)}?{query}")

    whole = get("").json()
    assert {"items", "total", "limit", "offset"} <= set(whole)
    assert whole["offset"] == 0 and 1 <= whole["limit"] <= 100
    assert len(whole["items"]) == min(whole["total"], whole["limit"])

    for limit in (1, 100):
        assert get(f"limit={limit}").json()["limit"] == limit
    assert len(get("limit=1").json()["items"]) == min(1, whole["total"])
    beyond = get(f"offset={whole['total']}").json()
    assert (beyond["items"], beyond["total"]) == ([], whole["total"])
    for query in ("limit=0", "limit=101", "limit=-1", "limit=1.0", "limit=", "limit=+1", "offset=-1", "offset=1e1"):
        refused = get(query)
        assert (refused.status_code, refused.json()["code"]) == (400, "validation_error")
        assert list(refused.json()["errors"]) == [query.partition("=")[0]]


# --- limits

LIMITED = [operation for operation in API if operation.path != "/api/v1/auth/logout" and not is_for_staff(operation)]


def limit(settings: Any, name: str, requests: int) -> None:
    policy = type(settings.RATE_LIMITS["api"])(requests, 60)
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, name: policy}


@pytest.mark.parametrize("operation", LIMITED, ids=str)
def test_every_operation_counts_says_so_and_refuses(settings, client, token, operation: Operation):
    name = "auth" if operation.path in {"/api/v1/auth/login", "/api/v1/auth/register"} else "api"
    limit(settings, name, 2)
    url = operation.url()

    for remaining in (1, 0):
        response = client.generic(operation.method, url, b"{}", content_type="application/json")
        assert response.status_code != 429
        assert response["RateLimit-Policy"] == f'"{name}";q=2;w=60'
        assert re.fullmatch(rf'"{name}";r={remaining};t=([1-9]|[1-5]\d|60)', response["RateLimit"])
        assert not response.has_header("Retry-After")
    refused = client.generic(
        operation.method, url, b"{}", content_type="application/json", headers={"X-Forwarded-For": "203.0.113.9"}
    )

    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused["Retry-After"]) <= 60
    assert refused["RateLimit"].startswith(f'"{name}";r=0;t=')
    assert refused.json()["request_id"] == refused["X-Request-ID"]


@pytest.mark.parametrize("operation", READS, ids=str)
def test_a_superuser_is_not_limited(settings, operation: Operation):
    limit(settings, "api", 1)
    api = Api(SuperuserFactory())

    for _ in range(3):
        response = api.client.get(operation.url())
        assert response.status_code in {200, 404}
        assert not response.has_header("RateLimit")


def test_health_and_pages_are_not_limited(settings):
    limit(settings, "api", 1)
    limit(settings, "auth", 1)

    for _ in range(3):
        for path in ("/health/live", "/", "/docs", "/openapi.json", "/admin/login/"):
            assert Client().get(path).status_code == 200


def test_no_secret_is_in_an_answer(client, user, token):
    """Hashes, digests and keys stay inside."""
    for operation in READS:
        text = client.get(operation.url(token.pk)).content.decode()
        assert user.password not in text
        assert project.SECRET_KEY not in text
        assert bytes(token.digest).hex() not in text if isinstance(token.digest, bytes) else token.digest not in text
        json.loads(text)

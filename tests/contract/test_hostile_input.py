"""What nobody should send, to every operation of the schema: a 4xx with a code, and nothing changed."""

from __future__ import annotations

import functools
import json
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from django.apps import apps
from django.conf import settings
from django.db import connection
from django.db.models import Model
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.api import Api
from tests.contract.routes import Operation, is_for_users, operations
from tests.factories import PASSWORD
from tests.money import user_with
from tokens.services import purchase_token

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("many_requests")]

OPERATIONS = operations()
FOR_USERS = [operation for operation in OPERATIONS if is_for_users(operation)]
WITH_BODY = [operation for operation in FOR_USERS if operation.body]
CHANGING = [operation for operation in FOR_USERS if operation.method != "GET"]
WITH_ID = [operation for operation in FOR_USERS if operation.parameters]
WITH_QUERY = [(operation, name) for operation in FOR_USERS for name in operation.query]

#: Whatever may change without anybody having asked for it.
_CLOCKS = {"last_used_at", "last_login"}


def state() -> dict[str, str]:
    """A digest of the rows of each of our own apps' tables, in one question, as every request here is judged by it."""
    with connection.cursor() as cursor:
        cursor.execute(_state_query())
        return dict(cursor.fetchall())


@functools.cache
def _state_query() -> str:
    return " UNION ALL ".join(
        f"SELECT '{model._meta.label}', md5(coalesce(string_agg(row, E'\\n' ORDER BY row), '')) "
        f"FROM (SELECT (to_jsonb(one) - '{{{','.join(sorted(_CLOCKS))}}}'::text[])::text AS row "
        f'FROM "{model._meta.db_table}" one) rows'
        for model in _own_models()
    )


def _own_models() -> list[type[Model]]:
    names = {"accounts", "wallet", "tokens", "bundles", "referrals", "proxy", "analytics", "notifications", "lib"}
    return [model for model in apps.get_models() if model._meta.app_label in names]


@pytest.mark.parametrize(("field", "value", "changed"), [("label", "new", ["tokens.AccessToken"]), ("pk", None, [])])
def test_a_change_is_seen_where_it_is(caller: Caller, field: str, value: str | None, changed: list[str]):
    """The control: a digest that never changed would prove nothing."""
    before = state()
    if value is not None:
        type(caller.token).objects.filter(pk=caller.token.pk).update(**{field: value})
    after = state()
    assert len(after) > 20
    assert [name for name in after if after[name] != before[name]] == changed


class Caller:
    """A signed-in superuser, whom no route turns away before it looks at the request, with money and a token."""

    def __init__(self) -> None:
        self.user = user_with("1000.00", is_staff=True, is_superuser=True)
        self.token = purchase_token(owner=self.user, duration_hours=24).token
        self.bearer = Api().sign_in(self.user).access_token
        self.client = Client(raise_request_exception=False)

    def send(
        self, method: str, url: str, body: bytes = b"", content_type: str = "application/json", **headers: str
    ) -> Any:
        headers = {"Authorization": f"Bearer {self.bearer}", **headers}
        return self.client.generic(method, url, body, content_type=content_type, headers=headers)

    def refused(self, method: str, url: str, body: bytes = b"", **options: Any) -> Any:
        """Send what must be refused, and return the error's body."""
        before = state()
        response = self.send(method, url, body, **options)
        assert 400 <= response.status_code < 500, (response.status_code, response.content[:300])
        parsed = response.json()
        assert {"detail", "code", "request_id"} <= set(parsed) <= {"detail", "code", "request_id", "errors"}
        assert parsed["detail"] and parsed["code"]
        assert parsed["request_id"] == response["X-Request-ID"]
        assert state() == before
        return response


@pytest.fixture
def caller() -> Caller:
    return Caller()


#: JSON texts that suit no field of ours. Whether a string of odd characters is a good label is not asked here.
UNFIT = [
    b"1e400", b"-1e400", b"9" * 400, b"9" * 5000, b"9223372036854775808", b"-9223372036854775809", b"-1", b"0.001",
    b"1e-400", b"NaN", b"Infinity", b"true", b"[]", b"{}", b"[1]", b'{"a": 1}', b'"\\u0000"', b'"\\ud800"', b'"a\x00b"',
    b'"\xff"', b'"' + b"x" * 70_000 + b'"', b"[" * 50 + b"]" * 50,
]  # fmt: skip


@pytest.mark.parametrize("operation", WITH_BODY, ids=str)
def test_no_field_takes_what_does_not_fit(caller: Caller, operation: Operation):
    assert operation.body is not None
    url = operation.url(caller.token.pk)
    for name, described in operation.body["properties"].items():
        for text in UNFIT:
            if (text, described.get("type")) in ((b"[]", "array"), (b"true", "boolean")):
                continue
            response = caller.refused(operation.method, url, b'{"%b": %b}' % (name.encode(), text))
            # A name takes a JSON number as its text; then there is no such bundle.
            assert response.status_code == 400 or operation.path == "/api/v1/bundles/{bundle_id}", (name, text[:40])


BODIES = {
    "cut off": b'{"a":',
    "null": b"null",
    "an array": b"[]",
    "a string": b'"a"',
    "broken UTF-8": b'{"a": "\xff"}',
    "a raw NUL": b'{"a": "\x00"}',
    "an escaped NUL": b'{"a": "\\u0000"}',
    "a NUL as a name": b'{"\\u0000": 1}',
    "a lone surrogate": b'{"a": "\\udfff"}',
    "NaN": b'{"a": NaN}',
    "too deep": b'{"a":' * 500 + b"1" + b"}" * 500,
}


@pytest.mark.parametrize("operation", CHANGING, ids=str)
def test_a_body_that_is_no_json_object_changes_nothing(caller: Caller, operation: Operation):
    """Also where the route has no use for a body."""
    for name, body in BODIES.items():
        response = caller.refused(operation.method, operation.url(caller.token.pk), body)
        assert (response.status_code, response.json()["code"]) == (400, "parse_error"), name


@pytest.mark.parametrize("operation", CHANGING, ids=str)
def test_ten_megabytes_change_nothing(caller: Caller, operation: Operation):
    body = b'{"label": "%b"}' % (b"x" * 10_000_000)

    response = caller.refused(operation.method, operation.url(caller.token.pk), body)

    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("operation", CHANGING, ids=str)
@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", "", "application/json, a/b"])
def test_another_type_of_body_changes_nothing(caller: Caller, operation: Operation, content_type):
    response = caller.refused(operation.method, operation.url(caller.token.pk), b"{}", content_type=content_type)

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


QUERIES = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    "١".encode(),
    "１".encode(),
    b"-1",
    b"1e400",
    b"NaN",
    b"9" * 400,
    b"[]",
    b"x" * 30_000,
]


@pytest.mark.parametrize(("operation", "name"), WITH_QUERY, ids=str)
def test_no_query_parameter_takes_what_does_not_fit(caller: Caller, operation: Operation, name):
    for raw in QUERIES:
        value = quote_from_bytes(raw)
        for query in (f"{name}={value}", f"{name}={value}&{name}={value}"):
            response = caller.refused(operation.method, f"{operation.url(caller.token.pk)}?{query}")
            assert response.json()["code"] == "validation_error"
            assert list(response.json()["errors"]) == [name]


IDENTIFIERS = [
    "%00", "%FF", "%ED%A0%80", "1", "-1", "null", "0" * 40, "x" * 30_000, "00000000-0000-0000-0000-00000000000g",
    "%D9%A1" * 8, "00000000000000000000000000000000", "{00000000-0000-4000-8000-000000000000}", "..", "%2e%2e",
]  # fmt: skip


@pytest.mark.parametrize("operation", WITH_ID, ids=str)
def test_what_is_no_id_names_nothing(caller: Caller, operation: Operation):
    for identifier in (*IDENTIFIERS, "00000000-0000-4000-8000-000000000000"):
        response = caller.refused(operation.method, operation.url(identifier))
        assert response.status_code in {404, 405}, identifier


@pytest.mark.parametrize("operation", [operation for operation in FOR_USERS if not operation.public], ids=str)
@pytest.mark.parametrize(
    "credentials",
    ["", "Bearer", "Bearer ", "Bearer a b", "Bearer \xff", "Basic YTpi", "Bearer eyJhbGciOiJub25lIn0.e30.", "a" * 9000],
)
def test_without_credentials_nothing_happens(caller: Caller, operation: Operation, credentials):
    response = caller.refused(operation.method, operation.url(caller.token.pk), b"{}", Authorization=credentials)

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"


# --- whatever comes to mind

_ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.decimals(allow_nan=False, places=3).map(str)
    | st.text(st.characters(), max_size=40)
    | st.sampled_from(["24", "full", "1.00", PASSWORD, "deposit", "a@example.com", "2025-01-01T00:00:00Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_ANY_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Idempotency-Key": st.text(st.characters(max_codepoint=255), max_size=300),
        "Accept-Language": st.text(st.characters(max_codepoint=255), max_size=40),
        "X-Request-ID": st.text(st.characters(max_codepoint=255), max_size=140),
        "Accept": st.sampled_from(["*/*", "application/json", "text/html", "", "a/b;c"]),
        "Cookie": st.text(st.characters(max_codepoint=255), max_size=60),
        "User-Agent": st.text(st.characters(max_codepoint=255), max_size=60),
    },
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Operation, dict[str, Any], str, dict[str, str]]:
    operation = draw(st.sampled_from(OPERATIONS))
    names = list((operation.body or {}).get("properties", {})) or ["label"]
    body = draw(st.dictionaries(st.sampled_from(names) | st.text(max_size=5), _ANY_JSON, max_size=5))
    query = "&".join(
        f"{name}={quote_from_bytes(draw(st.binary(max_size=12) | st.sampled_from([b'1', b'true', b'deposit'])))}"
        for name in draw(st.lists(st.sampled_from([*operation.query, "x"]), max_size=3))
    )
    return operation, body, query, draw(_ANY_HEADERS)


@pytest.mark.timeout(600)
@hypothesis_settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(request=requests())
def test_nothing_is_answered_with_a_server_error(caller: Caller, request):
    operation, body, query, headers = request
    before = state()
    if operation.path.endswith("/logout"):
        # The one session of this test; ending it would turn every later answer into a 401.
        headers = {**headers, "Authorization": ""}

    response = caller.send(
        operation.method,
        f"{operation.url(caller.token.pk)}?{query}",
        json.dumps(body).encode(errors="surrogatepass"),
        **headers,
    )

    status = response.status_code
    # /health says 503 for as long as no worker has been heard of.
    assert status < 500 or operation.path.startswith("/health"), (status, response.content[:500])
    assert response["X-Request-ID"]
    assert status in operation.statuses | {406}, (str(operation), status, response.content[:300])
    if status >= 400 and not operation.path.startswith("/health"):
        parsed = response.json()
        assert {"detail", "code", "request_id"} <= set(parsed), parsed
        assert state() == before
    assert settings.DEBUG is False

"""What becomes of an exception."""

from __future__ import annotations

import json
from typing import Any

import django.db
import psycopg
import pytest
import redis.exceptions
from django.core.exceptions import PermissionDenied, SuspiciousOperation, ValidationError
from django.http import Http404
from django.test import Client, RequestFactory
from django.utils import translation
from rest_framework import exceptions as drf

from zenzefi.lib import errors
from zenzefi.lib.context import request_id


class Teapot(errors.DomainError):
    status = 418
    code = "teapot"
    detail = "Short and stout."


def database_error(kind: type[Exception], cause: psycopg.Error) -> Exception:
    exc = kind("from the database")
    exc.__cause__ = cause
    return exc


def handled(exc: Exception) -> Any:
    token = request_id.set("id-of-the-request")
    try:
        return errors.exception_handler(exc, {})
    finally:
        request_id.reset(token)


@pytest.mark.parametrize(
    ("exc", "status", "code"),
    [
        (Teapot(), 418, "teapot"),
        (errors.NotFound(), 404, "not_found"),
        (errors.Conflict(), 409, "conflict"),
        (errors.PayloadTooLarge(), 413, "payload_too_large"),
        (errors.RateLimited(), 429, "rate_limited"),
        (Http404("secret path"), 404, "not_found"),
        (PermissionDenied("secret reason"), 403, "permission_denied"),
        (drf.NotAuthenticated(), 401, "not_authenticated"),
        (drf.AuthenticationFailed(), 401, "authentication_failed"),
        (drf.PermissionDenied(), 403, "permission_denied"),
        (drf.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (drf.NotAcceptable(), 406, "not_acceptable"),
        (drf.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (drf.ParseError(), 400, "parse_error"),
        (drf.APIException({"detail": "nested", "code": "own_code"}), 500, "own_code"),
        (redis.exceptions.ConnectionError(), 503, "service_unavailable"),
        (redis.exceptions.TimeoutError(), 503, "service_unavailable"),
        (redis.exceptions.BusyLoadingError(), 503, "service_unavailable"),
        (redis.exceptions.ReadOnlyError(), 503, "service_unavailable"),
        (redis.exceptions.OutOfMemoryError(), 503, "service_unavailable"),
        (django.db.OperationalError(), 503, "service_unavailable"),
        (django.db.InterfaceError(), 503, "service_unavailable"),
        (database_error(django.db.OperationalError, psycopg.errors.DeadlockDetected()), 503, "service_unavailable"),
        (database_error(django.db.DataError, psycopg.errors.NumericValueOutOfRange()), 400, "validation_error"),
        (database_error(django.db.DataError, psycopg.errors.UntranslatableCharacter()), 400, "validation_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_refusal_has_the_one_shape(exc, status, code):
    response = handled(exc)

    assert (response.status_code, response.data["code"]) == (status, code)
    assert response.data["request_id"] == "id-of-the-request"
    assert response.data["detail"] and "secret" not in response.data["detail"]
    assert ("Retry-After" in response.headers) == (status == 503)


@pytest.mark.parametrize(
    "exc",
    [
        KeyError("bug"),
        redis.exceptions.ResponseError("a bug in a script"),
        database_error(django.db.IntegrityError, psycopg.errors.UniqueViolation()),
        database_error(django.db.ProgrammingError, psycopg.errors.UndefinedColumn()),
        django.db.DataError(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_a_bug_is_not_dressed_up_as_a_refusal(exc):
    assert handled(exc) is None


@pytest.mark.parametrize(
    ("exc", "fields"),
    [
        (drf.ValidationError("plain"), {"non_field_errors": ["plain"]}),
        (drf.ValidationError({"a": ["x", "y"]}), {"a": ["x", "y"]}),
        (drf.ValidationError({"a": "x"}), {"a": ["x"]}),
        (drf.ValidationError({"a": {"b": ["x"]}}), {"a.b": ["x"]}),
        (drf.ValidationError({"a": [{}, {"b": ["x"]}]}), {"a.1.b": ["x"]}),
        (drf.ValidationError([{"b": ["x"]}]), {"0.b": ["x"]}),
        (ValidationError("plain"), {"non_field_errors": ["plain"]}),
        (ValidationError({"a": ["x"]}), {"a": ["x"]}),
    ],
)
def test_texts_are_listed_by_field(exc, fields):
    response = handled(exc)

    assert (response.status_code, response.data["code"]) == (400, "validation_error")
    assert response.data["errors"] == fields


def test_own_texts_fields_and_headers_are_kept():
    response = handled(Teapot("Tip me over.", errors={"spout": ["short"]}, headers={"X-Handle": "1"}))

    assert (response.data["detail"], response.data["errors"]) == ("Tip me over.", {"spout": ["short"]})
    assert response.headers["X-Handle"] == "1"


def test_texts_come_in_the_language_of_the_request():
    with translation.override("ru"):
        russian = handled(errors.NotFound()).data["detail"]

    assert str(russian) != ""
    assert handled(errors.NotFound()).data["detail"] == "Not found."


def test_the_challenge_is_passed_on():
    exc = drf.NotAuthenticated()
    exc.auth_header = "Bearer"  # type: ignore[attr-defined]  # as DRF's views set it

    assert handled(exc).headers["WWW-Authenticate"] == "Bearer"


def test_plain_views_answer_alike():
    request = RequestFactory().get("/")
    for response, status, code in [
        (errors.error_response(Teapot()), 418, "teapot"),
        (errors.not_found(request, Http404()), 404, "not_found"),
        (errors.permission_denied(request, PermissionDenied()), 403, "permission_denied"),
        (errors.bad_request(request, SuspiciousOperation()), 400, "bad_request"),
        (errors.server_error(request), 500, "internal_error"),
    ]:
        body = json.loads(response.content)
        assert (response.status_code, body["code"]) == (status, code)
        assert set(body) == {"detail", "code", "request_id"}


def test_an_unknown_path_and_an_unknown_host_have_the_shape_too():
    for response, status in [
        (Client().get("/api/v1/nowhere"), 404),
        (Client().get("/nowhere/"), 404),
        (Client().get("/", headers={"Host": "evil.example"}), 400),
    ]:
        assert response.status_code == status
        assert response.json()["request_id"] == response["X-Request-ID"]


def test_a_form_that_is_too_large_answers_413(settings, db):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1024

    response = Client().post(
        "/admin/login/", "username=" + "x" * 4096, content_type="application/x-www-form-urlencoded"
    )

    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")

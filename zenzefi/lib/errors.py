"""Errors as clients see them: one sentence, a stable code, the request's id.

Services raise subclasses of :class:`DomainError`; :func:`exception_handler` is the one place that turns
those, Django's and DRF's exceptions into the answer ``{"detail", "code", "request_id"[, "errors"]}``.
"""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from rest_framework import exceptions as drf
from rest_framework.response import Response

from zenzefi.lib.context import request_id
from zenzefi.lib.redis import is_away

logger = logging.getLogger(__name__)

#: Seconds a client is asked to wait when a neighbour (PostgreSQL, Redis) does not answer.
RETRY_AFTER_UNAVAILABLE = 2


class DomainError(Exception):
    """A rule refused the request. Subclasses set ``status``, ``code`` and the default ``detail``."""

    status = 400
    code = "invalid"
    detail: str | Promise = _("The request was refused.")

    def __init__(
        self,
        detail: str | Promise | None = None,
        *,
        errors: dict[str, list[str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        if detail is not None:
            self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        super().__init__(str(self.detail))


class Unstorable(DomainError):
    """PostgreSQL cannot hold or look for a value: SQLSTATE class 22, or a NUL character. Nothing was stored."""

    code = "bad_request"
    detail = _("A value cannot be stored.")


class NotFound(DomainError):
    """The object is not there, or not the caller's; the answer does not tell which."""

    status = 404
    code = "not_found"
    detail = _("Not found.")


class Conflict(DomainError):
    status = 409
    code = "conflict"
    detail = _("The request conflicts with the present state.")


class PayloadTooLarge(DomainError):
    status = 413
    code = "payload_too_large"
    detail = _("The request body is too large.")


class RateLimited(DomainError):
    """Carries ``Retry-After`` (whole seconds, RFC 9110 §10.2.3) and the RateLimit fields."""

    status = 429
    code = "rate_limited"
    detail = _("Too many requests.")


class ServiceUnavailable(DomainError):
    """A neighbour does not answer; nothing was changed and the request may be repeated."""

    status = 503
    code = "service_unavailable"
    detail = _("The service is temporarily unavailable. Please try again.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headers.setdefault("Retry-After", str(RETRY_AFTER_UNAVAILABLE))


def error_body(detail: object, code: str, *, errors: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """Return the JSON body of an error answer."""
    body: dict[str, Any] = {"detail": str(detail), "code": code, "request_id": request_id.get()}
    if errors is not None:
        body["errors"] = errors
    return body


def error_response(error: DomainError) -> JsonResponse:
    """Return the answer for an error raised outside DRF (middleware, plain views)."""
    return JsonResponse(
        error_body(error.detail, error.code, errors=error.errors), status=error.status, headers=error.headers
    )


def unavailable(exc: BaseException) -> ServiceUnavailable | None:
    """Return the 503 for an exception that means PostgreSQL or Redis is away, else ``None``.

    A deadlock or a serialization failure (SQLSTATE class 40) that outlived its retries is one too: nothing
    was changed and repeating is right.
    """
    if is_away(exc):
        return ServiceUnavailable()
    if isinstance(exc, OperationalError | InterfaceError):
        return ServiceUnavailable()
    return None


def _flatten(detail: Any, prefix: str = "") -> dict[str, list[str]]:
    """Flatten DRF's nested validation detail to ``{"field.sub": ["text", ...]}``."""
    if isinstance(detail, dict):
        flat: dict[str, list[str]] = {}
        for key, value in detail.items():
            flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    if isinstance(detail, list):
        if any(isinstance(item, dict | list) for item in detail):
            flat = {}
            for index, item in enumerate(detail):
                if item:
                    flat.update(_flatten(item, f"{prefix}.{index}" if prefix else str(index)))
            return flat
        return {prefix or "non_field_errors": [str(item) for item in detail]}
    return {prefix or "non_field_errors": [str(detail)]}


_DRF_CODES = {
    drf.NotAuthenticated: "not_authenticated",
    drf.AuthenticationFailed: "authentication_failed",
    drf.PermissionDenied: "permission_denied",
    drf.NotFound: "not_found",
    drf.MethodNotAllowed: "method_not_allowed",
    drf.NotAcceptable: "not_acceptable",
    drf.UnsupportedMediaType: "unsupported_media_type",
    drf.ParseError: "parse_error",
}


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's ``EXCEPTION_HANDLER``. Unknown exceptions return ``None`` and become a logged 500."""
    if isinstance(exc, DjangoValidationError):
        exc = drf.ValidationError(getattr(exc, "message_dict", None) or exc.messages)
    elif isinstance(exc, Http404):
        exc = drf.NotFound()
    elif isinstance(exc, PermissionDenied):
        exc = drf.PermissionDenied()
    elif (away := unavailable(exc)) is not None:
        logger.warning("Answered 503: %s", type(exc).__name__, exc_info=exc)
        exc = away
    elif is_unstorable(exc):
        # A value that passed the serializer but that PostgreSQL cannot hold; nothing was stored.
        exc = drf.ValidationError(gettext("A value cannot be stored."))

    if isinstance(exc, DomainError):
        return Response(error_body(exc.detail, exc.code, errors=exc.errors), status=exc.status, headers=exc.headers)
    if isinstance(exc, drf.ValidationError):
        return Response(
            error_body(gettext("Some fields are not valid."), "validation_error", errors=_flatten(exc.detail)),
            status=400,
        )
    if isinstance(exc, drf.APIException):
        headers: dict[str, str] = {}
        if challenge := getattr(exc, "auth_header", None):
            headers["WWW-Authenticate"] = challenge
        code = _DRF_CODES.get(type(exc), getattr(exc, "default_code", "error"))
        if isinstance(exc.detail, dict):
            detail, code = exc.detail.get("detail", ""), str(exc.detail.get("code", code))
        else:
            detail = exc.detail
        return Response(error_body(detail, code), status=exc.status_code, headers=headers)
    return None


def is_unstorable(exc: BaseException) -> bool:
    """Whether PostgreSQL, or psycopg before it, refused a value as such: SQLSTATE class 22, or a NUL character."""
    return isinstance(exc, DatabaseError) and isinstance(exc.__cause__, psycopg.DataError)


def _plain(request: HttpRequest, status: int, code: str, detail: object) -> JsonResponse:
    return JsonResponse(error_body(detail, code), status=status)


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's ``handler400``: a suspicious request that no view saw."""
    if isinstance(exception, SuspiciousOperation) and type(exception).__name__ == "RequestDataTooBig":
        return _plain(request, 413, PayloadTooLarge.code, PayloadTooLarge.detail)
    return _plain(request, 400, "bad_request", gettext("The request is malformed."))


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's ``handler404``."""
    return _plain(request, 404, NotFound.code, NotFound.detail)


def permission_denied(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's ``handler403``."""
    return _plain(request, 403, "permission_denied", gettext("You may not do this."))


def server_error(request: HttpRequest) -> JsonResponse:
    """Django's ``handler500``: nothing of the cause is shown."""
    return _plain(request, 500, "internal_error", gettext("Something went wrong on our side."))

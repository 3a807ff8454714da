"""Middleware of the control plane. All of it is synchronous: a mixed chain would cost a thread hop each."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from zenzefi.lib import errors
from zenzefi.lib.bodies import TOO_LARGE
from zenzefi.lib.context import request_id
from zenzefi.lib.network import is_trusted_peer

GetResponse = Callable[[HttpRequest], HttpResponseBase]

_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._~-]{8,128}")
_FORWARDING = {"HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_FORWARDED"}


def choose_request_id(offered: str | None) -> str:
    """Return the caller's ``X-Request-ID`` if it is 8-128 unreserved characters, else a new one."""
    if offered and _WELL_FORMED_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex


class RequestIDMiddleware:
    """Gives every request an id, drops forwarding headers that no trusted proxy sent, adds the RateLimit fields."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        token = request_id.set(choose_request_id(request.META.get("HTTP_X_REQUEST_ID")))
        if not is_trusted_peer(request.META.get("REMOTE_ADDR", "")):
            # Dropped, but not forgotten: behind a proxy nobody configured, a loopback peer is not a local caller.
            request.META["zenzefi.forwarded"] = bool(_FORWARDING & request.META.keys())
            for name in _FORWARDING:
                request.META.pop(name, None)
        try:
            response = self.get_response(request)
            response["X-Request-ID"] = request_id.get()
            if (decision := getattr(request, "rate_limit", None)) is not None:
                for name, value in decision.headers().items():
                    response[name] = value
            return response
        finally:
            request_id.reset(token)


class OptionalTrailingSlashMiddleware:
    """Routes are declared without a trailing slash; this makes the slash optional without a redirect.

    The admin declares its own, with one.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        path = request.path_info
        if path == "/admin":
            request.path_info = request.path = "/admin/"
        elif len(path) > 1 and path.endswith("/") and not path.startswith(("/admin/", "/static/")):
            request.path_info = request.path = path[:-1]
        return self.get_response(request)


class BodyLimitMiddleware:
    """Answers 413 for a body that :class:`zenzefi.lib.bodies.BodyLimit` kept from Django.

    Stands where an answer still gets its language, its request id and what a browser of another origin must see.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if getattr(request, "scope", {}).get(TOO_LARGE):
            return errors.error_response(errors.PayloadTooLarge())
        return self.get_response(request)


class ServiceUnavailableMiddleware:
    """Answers 503 when PostgreSQL or Redis is away while a plain view, the admin included, is served.

    A refusal by a service answers as in the API.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        refusal: errors.DomainError | None
        if isinstance(exception, errors.DomainError):
            refusal = exception
        elif errors.is_unstorable(exception):
            # The back office looks up what stands in an address, which may hold anything.
            refusal = errors.Unstorable()
        else:
            refusal = errors.unavailable(exception)
        return errors.error_response(refusal) if refusal is not None else None

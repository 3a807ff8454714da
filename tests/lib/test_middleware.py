"""What every request of the control plane passes through."""

from __future__ import annotations

import ipaddress

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from zenzefi.lib.context import request_id
from zenzefi.lib.errors import Conflict
from zenzefi.lib.middleware import OptionalTrailingSlashMiddleware, RequestIDMiddleware, ServiceUnavailableMiddleware


@pytest.mark.parametrize("offered", ["8-chars.", "a" * 128, "A.b_c~d-0123"])
def test_a_well_formed_id_of_the_caller_is_kept(offered):
    assert Client().get("/health/live", headers={"X-Request-ID": offered})["X-Request-ID"] == offered


@pytest.mark.parametrize("offered", ["", "short", "a" * 129, "with space", "quote'quote", "new\\nline!", "\xff" * 9])
def test_any_other_id_is_replaced(offered):
    answered = Client().get("/health/live", headers={"X-Request-ID": offered})["X-Request-ID"]

    assert answered != offered
    assert len(answered) == 32 and answered.isalnum()


def test_the_id_is_that_of_the_request_only_while_it_is_served():
    seen = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request_id.get())
        return HttpResponse()

    response = RequestIDMiddleware(view)(RequestFactory().get("/"))

    assert seen == [response["X-Request-ID"]]
    assert request_id.get() == ""


FORWARDING = {
    "X-Forwarded-For": "203.0.113.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=203.0.113.1",
}


@pytest.mark.parametrize(("peer", "kept"), [("10.0.0.1", True), ("198.51.100.7", False), ("127.0.0.1", False)])
def test_forwarding_headers_of_strangers_are_dropped(settings, peer, kept):
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    seen = {}

    def view(request: HttpRequest) -> HttpResponse:
        seen.update({name: request.headers.get(name) for name in FORWARDING})
        return HttpResponse()

    RequestIDMiddleware(view)(RequestFactory().get("/", REMOTE_ADDR=peer, headers=FORWARDING))

    assert seen == (FORWARDING if kept else dict.fromkeys(FORWARDING))


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("/api/v1/users/me", "/api/v1/users/me"),
        ("/api/v1/users/me/", "/api/v1/users/me"),
        ("/", "/"),
        ("/admin", "/admin/"),
        ("/admin/", "/admin/"),
        ("/admin/login/", "/admin/login/"),
        ("/static/x/", "/static/x/"),
        ("/administrator/", "/administrator"),
    ],
)
def test_the_trailing_slash_is_optional(asked, served):
    seen = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.extend([request.path_info, request.path])
        return HttpResponse()

    OptionalTrailingSlashMiddleware(view)(RequestFactory().get(asked))

    assert seen == [served, served]


def test_a_refusal_in_a_plain_view_is_answered_and_a_bug_is_not():
    middleware = ServiceUnavailableMiddleware(lambda request: HttpResponse())
    request = RequestFactory().get("/")

    refused = middleware.process_exception(request, Conflict())
    away = middleware.process_exception(request, _redis_away())

    assert refused is not None and refused.status_code == 409
    assert away is not None and away.status_code == 503 and away["Retry-After"]
    assert middleware.process_exception(request, KeyError()) is None


def _redis_away() -> Exception:
    import redis.exceptions

    return redis.exceptions.ConnectionError()

"""What the gateway refuses, in which order, and that a refusal changes nothing."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from proxy import keys
from proxy.models import Session
from tests.proxy.live import DEVICE
from tokens import secrets
from zenzefi.lib import redis as redis_client

OTHER_DEVICE = "device-other"


def assert_refused(answer, status, code):
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == answer.headers["x-zenzefi-error"] == code
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["detail"]
    details = {
        "rate_limited": {"rule", "limit", "reset_at", "retry_after"},
        "concurrency_limited": {"rule", "limit", "reset_at", "retry_after"},
        "quota_exceeded": {"rule", "limit", "reset_at", "retry_after"},
        "address_forbidden": {"rule"},
    }
    assert set(body) == {"detail", "code", "request_id"} | details.get(code, set())


def assert_untouched(upstream, *issued):
    """Nothing reached the upstream, nothing was activated, claimed, counted or recorded."""
    assert upstream.requests == []
    client = redis_client.client()
    for one in issued:
        token = one.reload()
        assert (token.activated_at, token.device_id) == (None, "")
        assert not client.exists(keys.device(token.pk), f"{keys.prefix()}rate:{token.pk}")
    assert not client.exists(keys.pending_activations())
    assert not Session.objects.exists()


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (None, "token_missing"),
        ("", "token_missing"),
        ("nonsense", "token_invalid"),
        ("znz_" + "a" * 60, "token_invalid"),
        # A fixed name: workers that run in parallel must collect the same tests.
        pytest.param(secrets.generate(), "token_invalid", id="unknown"),
    ],
)
@pytest.mark.parametrize("device", [DEVICE, None, "short"])
def test_bad_credentials_come_first(live, upstream, token, code, device):
    with live.client(token, device=device) as client:
        answer = client.get("certificates/../system/version")

    assert_refused(answer, 401, code)
    assert "x-access-token" in answer.headers["www-authenticate"].lower()
    assert_untouched(upstream)


def test_a_malformed_token_costs_no_look_up(live, upstream, django_assert_num_queries):
    before = dict(live.gateway.validator.answered)
    with live.client("znz_" + "a" * 60) as client:
        client.get("json")

    assert live.gateway.validator.answered == before


def test_two_tokens_in_one_request_are_none(live, upstream, issue):
    issued = issue()
    with live.client(device=DEVICE) as client:
        answer = client.get("json", headers=[("X-Access-Token", issued.secret), ("X-Access-Token", issued.secret)])

    assert_refused(answer, 401, "token_invalid")
    assert_untouched(upstream, issued)


def test_a_token_in_the_query_or_a_cookie_is_none(live, upstream, issue):
    issued = issue()
    with live.client(None) as client:
        answer = client.get(
            f"json?token={issued.secret}&access_token={issued.secret}",
            headers={"Cookie": f"X-Access-Token={issued.secret}; access_token={issued.secret}"},
        )

    assert_refused(answer, 401, "token_missing")
    assert_untouched(upstream, issued)


def test_a_revoked_token_is_refused(live, upstream, issue):
    issued = issue(revoked_at="2026-01-01T00:00:00Z")
    with live.client(issued.secret) as client:
        assert_refused(client.get("json"), 401, "token_revoked")
        assert_refused(client.get("json"), 401, "token_revoked")
    assert upstream.requests == []


def test_an_expired_token_is_refused(live, upstream, issue):
    with live.client(issue(active_for=timedelta(seconds=-1)).secret) as client:
        assert_refused(client.get("json"), 401, "token_expired")
    assert upstream.requests == []


def test_the_token_of_a_disabled_owner_is_refused(live, upstream, issue):
    issued = issue()
    issued.token.owner.is_active = False
    issued.token.owner.save()
    with live.client(issued.secret) as client:
        assert_refused(client.get("json"), 401, "owner_disabled")
    assert_untouched(upstream, issued)


@pytest.mark.parametrize(
    ("device", "status", "code"),
    [
        (None, 403, "device_missing"),
        ("", 403, "device_missing"),
        ("seven77", 400, "device_malformed"),
        ("x" * 256, 400, "device_malformed"),
        ("with space", 400, "device_malformed"),
    ],
)
def test_the_device_header_comes_before_the_path(live, upstream, issue, device, status, code):
    issued = issue(scope="certificates_only")
    with live.client(issued.secret, device=device) as client:
        assert_refused(client.get("system/version"), status, code)
    assert_untouched(upstream, issued)


def test_a_device_with_other_than_ascii_is_malformed(live, upstream, issue):
    issued = issue()
    with live.client(issued.secret, device=None) as client:
        answer = client.get("json", headers={b"X-Device-ID": "устройство".encode()})
    assert_refused(answer, 400, "device_malformed")
    assert_untouched(upstream, issued)


def test_two_devices_in_one_request_are_malformed(live, upstream, issue):
    issued = issue()
    with live.client(issued.secret, device=None) as client:
        answer = client.get("json", headers=[("X-Device-ID", "device-one"), ("X-Device-ID", "device-two")])
    assert_refused(answer, 400, "device_malformed")
    assert_untouched(upstream, issued)


@pytest.mark.parametrize("device", ["x" * 8, "x" * 255, "~!@#$%^&*()_+"])
def test_devices_of_every_allowed_shape_pass(live, issue, device):
    with live.client(issue().secret, device=device) as client:
        assert client.get("json").status_code == 200


def test_a_forbidden_path_is_refused_before_the_device_is_claimed(live, upstream, issue):
    issued = issue(scope="certificates_only")
    with live.client(issued.secret) as client:
        assert_refused(client.get("system/version"), 403, "scope_forbidden")
    assert_untouched(upstream, issued)


def test_the_scope_comes_before_the_device(live, upstream, issue):
    issued = issue(scope="certificates_only")
    with live.client(issued.secret) as first, live.client(issued.secret, device=OTHER_DEVICE) as second:
        assert first.get("certificates/filter").status_code == 200
        assert_refused(second.get("system/version"), 403, "scope_forbidden")
        assert_refused(second.get("certificates/filter"), 409, "device_conflict")


def test_the_device_comes_before_the_limit(live, settings, issue):
    policy = settings.RATE_LIMITS["proxy"]
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "proxy": type(policy)(1, 60)}
    live.stop()
    live.start()
    issued = issue()
    with live.client(issued.secret) as first, live.client(issued.secret, device=OTHER_DEVICE) as second:
        assert first.get("json").status_code == 200
        assert_refused(second.get("json"), 409, "device_conflict")
        assert_refused(first.get("json"), 429, "rate_limited")


@pytest.mark.parametrize("method", ["TRACE"])
def test_trace_is_not_relayed(live, upstream, issue, method):
    issued = issue()
    with live.client(issued.secret) as client:
        answer = client.request(method, "inspect")
    assert_refused(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]
    assert_untouched(upstream, issued)


def test_the_sentence_is_in_the_callers_language(live):
    with live.client(None) as client:
        english = client.get("json", headers={"Accept-Language": "de, en;q=0.5"})
        russian = client.get("json", headers={"Accept-Language": "ru-RU,ru;q=0.9,en;q=0.1"})

    assert (english.headers["content-language"], russian.headers["content-language"]) == ("en", "ru")
    assert english.json()["code"] == russian.json()["code"] == "token_missing"


def test_the_callers_request_id_is_kept_if_well_formed(live, upstream, issue):
    with live.client(issue().secret) as client:
        mine = uuid.uuid4().hex
        kept = client.get("json", headers={"X-Request-ID": mine})
        replaced = client.get("json", headers={"X-Request-ID": "with spaces and / slashes"})

    assert kept.headers["x-request-id"] == mine
    assert upstream.requests[0].header("x-request-id") == [mine.encode()]
    own = replaced.headers["x-request-id"]
    assert len(own) == 32
    assert upstream.requests[1].header("x-request-id") == [own.encode()]


def test_an_encoded_prefix_is_refused(live, upstream, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        answer = client.get(f"{live.url}/api/v1/prox%79/json")
    assert_refused(answer, 400, "bad_request")
    assert_untouched(upstream, issued)


def test_a_surprise_is_answered_in_our_own_form(live, upstream, issue, caplog):
    """A cached credential that nobody could have written."""
    issued = issue()
    with live.client(issued.secret) as client:
        client.get("status")
        redis_client.client().hset(keys.credential(issued.token.digest), "d", "not a number")
        assert_refused(client.get("json"), 500, "internal_error")

    assert upstream.requests == []
    assert "could not be decided on" in caplog.text

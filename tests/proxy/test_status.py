"""``GET /proxy/status``: about the token itself, and without any effect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.conf import settings

from proxy import keys
from tests.proxy.moments import stay_in_one_day
from tests.proxy.test_refusals import assert_refused, assert_untouched
from tests.upstream import wait_until
from tokens import secrets
from zenzefi.lib import redis as redis_client


def test_an_unused_token_is_ready(live, upstream, issue):
    issued = issue(scope="certificates_only", hours=12)
    with live.client(issued.secret, device=None) as client:
        answer = client.get("status")

    nothing = {"requests": 0, "bytes_in": 0, "bytes_out": 0}
    assert answer.status_code == 200
    assert answer.json() == {
        "connected": True,
        "user_id": str(issued.token.owner_id),
        "token_id": str(issued.token.pk),
        "is_activated": False,
        "status": "ready",
        "activated_at": None,
        "expires_at": None,
        "duration_hours": 12,
        "time_remaining_seconds": None,
        "scope": "certificates_only",
        "limits": {
            "requests": settings.RATE_LIMITS["proxy"].limit,
            "window_seconds": settings.RATE_LIMITS["proxy"].seconds,
            "seats": 1,
            "concurrent_requests": None,
            "bandwidth": None,
            "requests_per_day": None,
            "requests_per_month": None,
            "bytes_per_day": None,
            "bytes_per_month": None,
        },
        "usage": {**nothing, "today": nothing, "this_month": nothing},
    }
    assert answer.headers["cache-control"] == "no-store"
    assert_untouched(upstream, issued)


def test_an_active_token_shows_its_end_and_usage(live, issue):
    stay_in_one_day()
    issued = issue()
    with live.client(issued.secret) as client:
        client.post("sink", content=b"x" * 1000)
        size = len(client.get("bytes/5000").content)

        def usage():
            return client.get("status").json()["usage"]

        # A request may be counted before its last bytes are.
        wait_until(lambda: usage()["requests"] == 2 and usage()["bytes_out"] > size, what="the usage")
        shown = client.get("status").json()

    assert shown["status"] == "active"
    assert shown["is_activated"] is True
    assert shown["expires_at"].endswith("Z")
    assert datetime.fromisoformat(shown["expires_at"]) == issued.reload().expires_at
    assert 86_300 < shown["time_remaining_seconds"] <= 86_400
    assert shown["usage"]["bytes_in"] == 1000
    assert shown["usage"]["bytes_out"] > size == 5000
    assert (
        shown["usage"]["today"]
        == shown["usage"]["this_month"]
        == {name: shown["usage"][name] for name in ("requests", "bytes_in", "bytes_out")}
    )


def test_it_is_refused_like_any_request(live, issue):
    with live.client(None) as client:
        assert_refused(client.get("status"), 401, "token_missing")
        assert_refused(client.get("status", headers={"X-Access-Token": secrets.generate()}), 401, "token_invalid")
        revoked = issue(revoked_at=datetime.now(UTC))
        assert_refused(client.get("status", headers={"X-Access-Token": revoked.secret}), 401, "token_revoked")
        expired = issue(active_for=timedelta(seconds=-1))
        assert_refused(client.get("status", headers={"X-Access-Token": expired.secret}), 401, "token_expired")
        assert_refused(client.post("status", headers={"X-Access-Token": issue().secret}), 405, "method_not_allowed")


def test_it_claims_no_device_and_needs_none(live, issue):
    issued = issue()
    with live.client(issued.secret, device="status-device") as client:
        assert client.get("status/").status_code == 200
        assert client.head("status").status_code == 200
    assert not redis_client.client().exists(keys.device(issued.token.pk))
    with live.client(issued.secret, device="first-device") as client:
        assert client.get("json").status_code == 200
    with live.client(issued.secret, device="other-device") as client:
        assert client.get("status").status_code == 200


def test_a_cached_answer_costs_no_query(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        client.get("json")
        before = dict(live.gateway.validator.answered)
        for _ in range(20):
            client.get("status")
            client.get("json")
        after = live.gateway.validator.answered

    assert after["postgresql"] == before["postgresql"]
    assert after["redis"] == before["redis"] + 40

"""A client crosses the end of its token with the secret and the device it has, and is not refused once."""

from __future__ import annotations

import time
from datetime import timedelta
from decimal import Decimal

import pytest

from proxy import keys, services
from proxy.models import Session
from tests.proxy.live import DEVICE, LiveGateway
from tests.proxy.servers import own_redis
from tests.proxy.test_metering import handed_over
from tests.proxy.test_refusals import assert_refused
from tests.proxy.test_revocation import CUT_WITHIN, STREAM, cut_after
from tests.proxy.test_websocket import open_socket
from tests.upstream import wait_until
from tokens import tasks
from tokens.models import AccessToken
from tokens.selectors import digests_of_user
from tokens.services import choose_tier, renew_token, revoke_token, rotate_token
from wallet.services import top_up_mock
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client

#: Seconds that a token has left when its test begins: enough for what must come before its end on a busy machine.
LEFT = 3.0
OTHER = {"X-Device-ID": "device-other"}


@pytest.fixture
def renewing(issue):
    """Makes a token that renews itself, whose owner can pay for it once, with a moment left."""

    def make(left: float = 60, *, limited: bool = False):
        # A superuser's, unless limits matter: a tight loop of requests is not to meet the rate limit.
        issued = issue(active_for=timedelta(seconds=left), superuser=not limited, auto_renew=True, renew_at=clock.now())
        top_up_mock(user=issued.token.owner, amount=Decimal("18.00"))
        return issued

    return make


def renew(issued):
    """Buy the successor; nothing is written down later: no task runs in these tests unless it is called."""
    successor = renew_token(token_id=issued.token.pk)
    assert successor is not None
    return successor


def end(issued):
    """Move the token's times, and those of its successor, so that it ends now."""
    now = clock.now()
    day = timedelta(hours=24)
    AccessToken.objects.filter(pk=issued.token.pk).update(activated_at=now - day, expires_at=now)
    AccessToken.objects.filter(predecessor=issued.token).update(activated_at=now, expires_at=now + day)
    services.evict_credentials(digests=[issued.token.digest], revoked=False)


def wait_for_the_end_of(issued):
    wait_until(lambda: clock.now() > issued.token.expires_at, what="the token's end")


def keep_asking(client, issued, *, seconds_after: float = 0.2):
    """Ask again and again until a moment after the token's end; return how often."""
    stop = issued.token.expires_at + timedelta(seconds=seconds_after)
    count, over = 0, False
    # The last one is asked after that moment, however long the one before it took.
    while not over:
        over = clock.now() >= stop
        answer = client.get("json")
        assert answer.status_code == 200, answer.text
        # Not so fast that the rate limit has a say.
        time.sleep(0.002)
        count += 1
    return count


def reported_tokens(upstream):
    """Return the token id of each request that reached the upstream, in order."""
    return [
        value.decode()
        for exchange in upstream.requests
        for name, value in exchange.headers
        if name.lower() == b"x-token-id"
    ]


def test_no_request_is_refused_although_nobody_writes_anything_down(live, upstream, renewing):
    issued = renewing(LEFT)
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        successor = renew(issued)
        asked = 1 + keep_asking(client, issued)
        status = client.get("status").json()

    ids = reported_tokens(upstream)
    first, second = str(issued.token.pk), str(successor.pk)
    assert set(ids) == {first, second}
    switch = ids.index(second)
    assert set(ids[:switch]) == {first} and set(ids[switch:]) == {second}
    assert (status["token_id"], status["status"], status["is_activated"]) == (second, "active", True)
    assert 86_000 < status["time_remaining_seconds"] <= 86_400

    handed_over(live)
    counted = dict(Session.objects.values_list("token_id", "requests"))
    assert counted == {issued.token.pk: switch, successor.pk: asked - switch}
    successor.refresh_from_db()
    assert (successor.taken_over_at, successor.device_id) == (None, DEVICE)


def test_the_device_is_handed_on_and_the_books_follow_later(live, renewing):
    issued = renewing()
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        successor = renew(issued)
        end(issued)
        assert_refused(client.get("json", headers=OTHER), 409, "device_conflict")
        assert client.get("json").status_code == 200
        assert tasks.take_over() == 1
        assert_refused(client.get("json", headers=OTHER), 409, "device_conflict")
        assert client.get("json").status_code == 200
        assert client.get("status").json()["token_id"] == str(successor.pk)


def test_a_cache_that_was_filled_late_knows_the_successor(live, renewing):
    issued = renewing()
    successor = renew(issued)
    end(issued)
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        assert client.get("status").json()["token_id"] == str(successor.pk)


def test_without_a_successor_it_ends(live, renewing):
    issued = renewing()
    with live.client(issued.secret) as client:
        end(issued)
        assert_refused(client.get("json"), 401, "token_expired")


def test_a_successor_that_was_revoked_before_its_time_lets_nobody_in(live, renewing):
    issued = renewing()
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        successor = renew(issued)
        assert client.get("json").status_code == 200
        revoke_token(token_id=successor.pk, actor=None, refund=True)
        assert client.get("json").status_code == 200
        end(issued)
        assert_refused(client.get("json"), 401, "token_expired")


@pytest.mark.parametrize("written_down", [False, True])
def test_a_running_successor_is_revoked_like_any_token(live, renewing, written_down):
    issued = renewing()
    successor = renew(issued)
    end(issued)
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        if written_down:
            assert tasks.take_over() == 1
        with client.stream("GET", STREAM) as stream:
            assert cut_after(stream, lambda: revoke_token(token_id=successor.pk, actor=None, refund=True)) < CUT_WITHIN
        assert_refused(client.get("json"), 401, "token_revoked")


def test_revoking_the_token_takes_the_secret_away_for_good(live, renewing):
    issued = renewing()
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        renew(issued)
        revoke_token(token_id=issued.token.pk, actor=None, refund=True)
        assert_refused(client.get("json"), 401, "token_revoked")
        end(issued)
        assert_refused(client.get("json"), 401, "token_revoked")


def test_a_new_secret_crosses_the_end_and_the_old_one_does_not(live, renewing):
    issued = renewing(LEFT)
    with live.client(issued.secret) as old:
        assert old.get("json").status_code == 200
        renew(issued)
        rotated = rotate_token(token_id=issued.token.pk, owner=issued.token.owner)
        with live.client(rotated.secret) as new:
            keep_asking(new, issued)
        assert_refused(old.get("json"), 401, "token_invalid")


def test_an_open_stream_goes_on_and_counts_for_the_successor(live, renewing):
    """Also one that was opened before the successor was bought."""
    issued = renewing(LEFT)
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.05") as stream:
        pieces = stream.iter_raw()
        next(pieces)
        successor = renew(issued)
        [exchange] = live.gateway.registry
        stop = time.monotonic() + LEFT + 20
        while exchange.token_id != str(successor.pk).encode():
            next(pieces)
            assert time.monotonic() < stop, "the stream stays with the token that has ended"
        for _ in range(5):
            next(pieces)
    assert clock.now() >= issued.token.expires_at
    handed_over(live)
    before, after = (Session.objects.get(token_id=token.pk) for token in (issued.token, successor))
    assert (before.requests, after.requests) == (1, 0)
    assert before.bytes_out > 0 and after.bytes_out > 0


def test_an_open_stream_ends_with_a_token_that_nobody_renewed(live, renewing):
    issued = renewing(LEFT)
    with live.client(issued.secret) as client, client.stream("GET", STREAM) as stream:
        assert cut_after(stream, lambda: wait_for_the_end_of(issued)) < CUT_WITHIN


def test_an_open_socket_goes_on(live, renewing):
    issued = renewing(LEFT)
    with open_socket(live, issued.secret) as peer:
        peer.send("text: before")
        assert peer.recv(20) == "text: before"
        renew(issued)
        wait_for_the_end_of(issued)
        # Two looks of the gateway's clock later.
        time.sleep(0.3)
        peer.send("text: after")
        assert peer.recv(20) == "text: after"


def test_without_redis_the_end_is_crossed_too(settings, upstream, transactional_db, renewing):
    with own_redis() as own:
        settings.REDIS_URL = own.url
        with LiveGateway().running() as served:
            issued = renewing(2 * LEFT)
            with served.client(issued.secret) as client:
                assert client.get("json").status_code == 200
                successor = renew(issued)
                own.stop()
                wait_until(lambda: not served.gateway.link.up, what="the gateway's notice that Redis is away")
                settings.GATEWAY = {**settings.GATEWAY, "fallback_rate": 1000}
                keep_asking(client, issued)
                assert client.get("status").json()["token_id"] == str(successor.pk)
                # Whoever has just used the one holds the other.
                assert_refused(client.get("json", headers=OTHER), 409, "device_conflict")
    assert AccessToken.objects.get(pk=successor.pk).taken_over_at is None


def test_a_change_of_tier_reaches_the_gateway_at_once(live, issue):
    issued = issue()
    top_up_mock(user=issued.token.owner, amount=Decimal("10.00"))
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        [(_token_id, digest)] = digests_of_user(issued.token.owner_id)
        assert redis_client.client().exists(keys.credential(digest))
        choose_tier(user=issued.token.owner, tier="premium")
        assert not redis_client.client().exists(keys.credential(digest))
        assert client.get("json").status_code == 200


def test_limits_networks_and_seats_go_on_with_the_successor(live, renewing, allow):
    issued = renewing(LEFT, limited=True)
    allow(issued, ["127.0.0.0/8"], requests_per_minute=50, seats=2)
    successor = renew(issued)
    # What is changed while the successor waits is for both.
    allow(issued, ["127.0.0.1"], requests_per_minute=40)
    with (
        live.client(issued.secret) as first,
        live.client(issued.secret, device="device-other") as second,
        live.client(issued.secret, device="device-third") as third,
    ):
        assert [one.get("json").status_code for one in (first, second, third)] == [200, 200, 409]
        wait_until(lambda: clock.now() >= issued.token.expires_at, what="the token's end")
        for _ in range(2):
            answer = first.get("json")
            assert answer.headers["ratelimit-policy"] == '"proxy";q=40;w=60'
            assert first.get("status").json()["token_id"] == str(successor.pk)
            assert [one.get("json").status_code for one in (second, third)] == [200, 409]
            # Again when PostgreSQL is asked what the secret means.
            tasks.take_over()
            redis_client.client().delete(keys.credential(issued.token.digest))

    successor.refresh_from_db()
    assert successor.allowed_ips == ["127.0.0.1/32"]

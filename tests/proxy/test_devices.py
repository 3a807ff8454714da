"""One token, one device: claimed atomically, freed by idling or by its owner."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import Counter

import httpx
import pytest

from proxy import keys, services
from proxy.validation import Script
from tests.proxy.live import DEVICE, LiveGateway
from tests.redis_server import forget_keys
from tests.upstream import wait_until
from tokens.services import release_device
from zenzefi.lib import redis as redis_client


def test_another_device_is_refused_and_the_first_goes_on(live, upstream, issue):
    issued = issue()
    with live.client(issued.secret) as first, live.client(issued.secret, device="another-device") as second:
        assert first.get("json").status_code == 200
        refused = second.get("json")
        assert (refused.status_code, refused.json()["code"]) == (409, "device_conflict")
        assert first.get("json").status_code == 200

    assert len(upstream.requests) == 2


def race(live, secret, count):
    """Send one request from each of ``count`` devices at once; return their status codes."""

    async def all_at_once():
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=httpx.Limits(max_connections=count)) as client:

            async def one(number):
                headers = {"X-Access-Token": secret, "X-Device-ID": f"device-{number:04d}"}
                return (await client.get(f"{live.proxy}/json", headers=headers)).status_code

            return await asyncio.gather(*(one(number) for number in range(count)))

    return Counter(asyncio.run(all_at_once()))


def test_of_many_devices_at_once_one_wins(live, upstream, issue):
    # A second worker takes part: the claim must hold between processes, not only inside one event loop.
    with LiveGateway().running() as other:
        issued = issue()
        results: list[Counter[int]] = []
        threads = [
            threading.Thread(target=lambda server=server: results.append(race(server, issued.secret, 30)))
            for server in (live, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # The same 30 device names at both: the winner may pass at each, everybody else is refused.
    total = results[0] + results[1]
    assert total[200] in (1, 2)
    assert total[409] == 60 - total[200]
    assert len({exchange.header("x-token-id")[0] for exchange in upstream.requests}) == 1
    assert len(upstream.requests) == total[200]


def test_without_the_check_in_the_script_the_race_appears(live, issue, monkeypatch):
    """Negative control: the same race must end in many winners when the claim is not looked at."""
    blind = Script("decide")
    blind.source = blind.source.replace(b"if holder and holder ~= ARGV[1] then", b"if false then")
    assert b"if false then" in blind.source
    blind.sha = hashlib.sha1(blind.source, usedforsecurity=False).hexdigest()
    monkeypatch.setattr("proxy.validation.DECIDE", blind)
    redis_client.client().script_load(blind.source)

    assert race(live, issue().secret, 20)[200] > 1


def test_an_idle_claim_ends(settings, live, issue):
    # Long enough for one request after another on a busy machine.
    settings.DEVICE_IDLE_SECONDS = 4
    live.stop()
    live.start()
    issued = issue()
    with live.client(issued.secret) as first, live.client(issued.secret, device="another-device") as second:
        assert first.get("json").status_code == 200
        assert second.get("json").status_code == 409
        wait_until(lambda: second.get("json").status_code == 200, what="the claim's end")
        assert first.get("json").status_code == 409


def test_a_refused_device_does_not_keep_the_claim_alive(live, issue):
    issued = issue()
    client = redis_client.client()
    with live.client(issued.secret) as first, live.client(issued.secret, device="another-device") as second:
        first.get("json")
        client.pexpire(keys.device(issued.token.pk), 30_000)
        second.get("json")
        assert client.pttl(keys.device(issued.token.pk)) <= 30_000
        first.get("json")
        assert client.pttl(keys.device(issued.token.pk)) > 200_000


def test_the_owner_releases_the_device_at_once(live, issue):
    issued = issue()
    with live.client(issued.secret) as first, live.client(issued.secret, device="another-device") as second:
        assert first.get("json").status_code == 200
        assert second.get("json").status_code == 409
        release_device(token_id=issued.token.pk, owner=issued.token.owner)
        assert second.get("json").status_code == 200
        assert first.get("json").status_code == 409


@pytest.mark.slow
def test_an_open_stream_keeps_its_claim(settings, live, issue):
    # It is looked after once a second, and on a busy machine later.
    settings.DEVICE_IDLE_SECONDS = 5
    live.stop()
    live.start()
    issued = issue()
    with (
        live.client(issued.secret) as first,
        first.stream("GET", "events?n=0&interval=0.2") as stream,
        live.client(issued.secret, device="another-device") as second,
    ):
        lines = stream.iter_lines()
        until = time.monotonic() + 6.5
        while time.monotonic() < until:
            next(lines)
        assert second.get("json").status_code == 409


def test_a_stream_is_cut_when_another_device_takes_over(live, issue):
    issued = issue()
    with (
        live.client(issued.secret) as first,
        live.client(issued.secret, device="another-device") as second,
        pytest.raises(httpx.RemoteProtocolError),
        first.stream("GET", "events?n=0&interval=0.1") as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        release_device(token_id=issued.token.pk, owner=issued.token.owner)
        assert second.get("json").status_code == 200
        for _ in lines:
            pass


def test_a_redis_that_lost_everything_still_knows_the_device(live, issue):
    issued = issue()
    with live.client(issued.secret) as first:
        first.get("json")
    wait_until(lambda: redis_client.client().xlen(keys.meter_stream()), what="the counts in Redis")
    services.flush_meter_stream()
    assert issued.reload().device_id == DEVICE
    forget_keys(keys.prefix())

    with live.client(issued.secret, device="another-device") as second:
        assert second.get("json").status_code == 409


def test_claims_are_per_token(live, issue):
    with live.client(issue().secret) as first, live.client(issue().secret, device="another-device") as second:
        assert first.get("json").status_code == second.get("json").status_code == 200

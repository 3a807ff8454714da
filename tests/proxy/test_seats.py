"""A token with several seats: as many devices at once, exactly; the list of devices; their release."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from notifications.models import OutboxEvent
from proxy import keys
from proxy.models import Session
from tests.api import Api
from tests.proxy.live import DEVICE, LiveGateway
from tests.proxy.load import hammer
from tests.proxy.test_metering import handed_over
from tests.proxy.test_refusals import assert_refused
from tests.proxy.test_revocation import cut_after
from tests.redis_server import forget_keys
from tests.upstream import wait_until
from tokens.services import release_device
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client


def signed_in(issued):
    api = Api()
    api.sign_in(issued.token.owner, "secret-enough")
    return api


def holders(issued):
    client: Any = redis_client.client()
    return {name.decode() for name in client.zrange(keys.seats(issued.token.pk), 0, -1)}


@pytest.mark.parametrize("seats", [1, 3])
def test_of_64_devices_at_once_as_many_win_as_there_are_seats(live, upstream, issue, allow, seats):
    issued = issue()
    allow(issued, seats=seats)
    with LiveGateway().running() as other:
        codes = hammer([live, other], issued.secret, connections=64, device=lambda number: f"device-{number:04d}")

    assert codes == Counter({200: seats, 409: 64 - seats})
    assert len(upstream.requests) == seats
    if seats > 1:
        assert len(holders(issued)) == seats


def test_everybody_with_a_seat_goes_on_and_the_next_is_refused(live, issue, allow):
    issued = issue()
    allow(issued, seats=2)
    with (
        live.client(issued.secret) as first,
        live.client(issued.secret, device="another-device") as second,
        live.client(issued.secret, device="third-device") as third,
    ):
        assert [one.get("json").status_code for one in (first, second, first, second)] == [200] * 4
        assert_refused(third.get("json"), 409, "device_conflict")
        assert holders(issued) == {DEVICE, "another-device"}

        # An idle device's seat is free; the others keep theirs.
        before = (clock.now() - timedelta(seconds=301)).timestamp() * 1000
        redis_client.client().zadd(keys.seats(issued.token.pk), {"another-device": before})
        assert third.get("json").status_code == 200
        assert_refused(second.get("json"), 409, "device_conflict")
        assert first.get("json").status_code == 200


def test_an_open_stream_keeps_its_seat(settings, live, issue, allow):
    settings.DEVICE_IDLE_SECONDS = 3
    live.stop()
    live.start()
    issued = issue()
    allow(issued, seats=2)
    with (
        live.client(issued.secret) as first,
        first.stream("GET", "events?n=0&interval=0.1") as stream,
        live.client(issued.secret, device="another-device") as second,
        live.client(issued.secret, device="third-device") as third,
    ):
        pieces = stream.iter_raw()
        started = time.monotonic()
        while time.monotonic() - started < 4:
            next(pieces)
            second.get("json")
        assert third.get("json").status_code == 409


def test_a_stream_is_cut_when_its_seat_went_to_another(live, issue, allow):
    issued = issue()
    allow(issued, seats=2)
    with (
        live.client(issued.secret) as first,
        live.client(issued.secret, device="another-device") as second,
        live.client(issued.secret, device="third-device") as third,
        first.stream("GET", "events?n=0&interval=0.1") as stream,
    ):
        assert second.get("json").status_code == 200

        def hand_over():
            release_device(token_id=issued.token.pk, owner=issued.token.owner, device_id=DEVICE)
            assert third.get("json").status_code == 200

        cut_after(stream, hand_over)
        assert second.get("json").status_code == 200


def test_the_owner_sees_and_releases_devices(live, issue, allow):
    issued = issue()
    allow(issued, seats=2)
    owner, stranger = signed_in(issued), signed_in(issue())
    path = f"tokens/{issued.token.pk}"
    with (
        live.client(issued.secret) as first,
        live.client(issued.secret, device="another-device") as second,
        live.client(issued.secret, device="third-device") as third,
    ):
        first.headers["User-Agent"] = "desktop/1"
        for one in (first, second):
            assert one.get("json").status_code == 200
            # The list has whoever came last first, by what is noted at a request's end.
            wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
            time.sleep(0.005)
        handed_over(live)

        shown = owner.get(f"{path}/devices")
        assert shown["total"] == 2
        assert [(one["device_id"], one["holds_seat"]) for one in shown["items"]] == [
            ("another-device", True),
            (DEVICE, True),
        ]
        assert shown["items"][1]["client_address"] == "127.0.0.1"
        assert shown["items"][1]["user_agent"] == "desktop/1"
        assert shown["items"][1]["last_seen_at"].endswith("Z")
        stranger.get(f"{path}/devices", status=404)
        stranger.post(f"{path}/release-device", {"device_id": DEVICE}, status=404)
        assert holders(issued) == {DEVICE, "another-device"}

        # A device that holds nothing frees nothing.
        owner.post(f"{path}/release-device", {"device_id": "device-unknown"})
        assert third.get("json").status_code == 409
        owner.post(f"{path}/release-device", {"device_id": DEVICE})
        assert holders(issued) == {"another-device"}
        assert [one["device_id"] for one in owner.get(f"{path}/devices")["items"]] == ["another-device"]
        assert Session.objects.get(device_id=DEVICE).ended_reason == "device_released"
        assert [third.get("json").status_code, first.get("json").status_code] == [200, 409]
        owner.post(f"{path}/release-device")
        assert holders(issued) == set()
        assert owner.get(f"{path}/devices")["items"] == []
        owner.post(f"{path}/release-device", {"device_id": 5}, status=400)

    events = OutboxEvent.objects.filter(event="token.device_released").order_by("created_at")
    assert [event.data["device_id"] for event in events] == ["device-unknown", DEVICE, None]


def test_one_seat_is_released_by_the_name_of_its_device(live, issue):
    issued = issue()
    owner = signed_in(issued)
    with live.client(issued.secret) as first, live.client(issued.secret, device="another-device") as second:
        first.get("json")
        handed_over(live)
        owner.post(f"tokens/{issued.token.pk}/release-device", {"device_id": "another-device"})
        assert second.get("json").status_code == 409
        assert issued.reload().device_id == DEVICE
        owner.post(f"tokens/{issued.token.pk}/release-device", {"device_id": DEVICE})
        assert issued.reload().device_id == ""
        assert second.get("json").status_code == 200


def test_a_new_number_of_seats_frees_them(live, issue, allow):
    issued = issue()
    with (
        live.client(issued.secret) as first,
        live.client(issued.secret, device="another-device") as second,
    ):
        assert [one.get("json").status_code for one in (first, second)] == [200, 409]
        allow(issued, seats=2)
        assert [one.get("json").status_code for one in (second, first)] == [200, 200]
        allow(issued, seats=1)
        assert [one.get("json").status_code for one in (second, first)] == [200, 409]


def test_a_redis_that_lost_everything_still_knows_the_devices(live, issue, allow):
    issued = issue()
    allow(issued, seats=2)
    for device in (DEVICE, "another-device"):
        with live.client(issued.secret, device=device) as client:
            client.get("json")
    handed_over(live)
    forget_keys(keys.prefix())

    with live.client(issued.secret, device="third-device") as third, live.client(issued.secret) as first:
        assert third.get("json").status_code == 409
        assert first.get("json").status_code == 200


def test_without_redis_the_list_says_that_it_does_not_know(issue, settings, monkeypatch):
    issued = issue()
    now = clock.now()
    Session.objects.create(
        token=issued.token, user=issued.token.owner, device_id=DEVICE, started_at=now, last_activity_at=now
    )
    owner = signed_in(issued)
    away = redis.Redis(unix_socket_path="/nowhere/redis.sock", retry=Retry(NoBackoff(), 0))
    monkeypatch.setattr("proxy.selectors.redis_client", SimpleNamespace(client=lambda: away))

    assert owner.get(f"tokens/{issued.token.pk}/devices")["items"][0]["holds_seat"] is None


def test_a_seat_that_is_left_can_be_claimed_again(live, issue, allow):
    issued = issue()
    allow(issued, seats=2)
    with live.client(issued.secret) as first:
        first.get("json")
        release_device(token_id=issued.token.pk)
        wait_until(lambda: first.get("json").status_code == 200, what="the claim")
    assert holders(issued) == {DEVICE}

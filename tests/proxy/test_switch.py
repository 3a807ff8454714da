"""The switch that closes the gateway; and that every change of a token reaches every process within two seconds."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import httpx
import pytest

from accounts.services import set_user_active
from notifications.models import OutboxEvent
from proxy import administration, keys, tasks
from proxy.models import GatewaySwitch
from proxy.selectors import live_states
from proxy.targets import from_settings
from tests.proxy.live import DEVICE, LiveGateway
from tests.proxy.processes import web_servers
from tests.proxy.servers import own_redis
from tests.proxy.test_refusals import assert_refused
from tests.proxy.test_revocation import CUT_WITHIN, STREAM, cut_after
from tests.proxy.test_websocket import open_socket
from tests.upstream import wait_until
from tokens.models import AccessToken
from tokens.services import revoke_token
from tokens.signals import credentials_changed
from zenzefi.lib import redis as redis_client

logger = logging.getLogger(__name__)

LEASE = 6


def switch(closed):
    administration.switch_gateway(closed=closed, actor=None, reason="a test")


def test_closed_everybody_is_refused_and_open_everybody_comes_back(live, upstream, issue):
    issued = issue()
    with LiveGateway().running() as other, live.client(issued.secret) as here, other.client(issued.secret) as there:
        assert here.get("json").status_code == 200
        switch(True)
        for client in (here, there):
            for path in ("json", "status"):
                refused = client.get(path)
                assert_refused(refused, 503, "gateway_closed")
                assert int(refused.headers["retry-after"]) >= 1
        assert len(upstream.requests) == 1
        switch(False)
        wait_until(lambda: here.get("json").status_code == 200, what="the gateway's opening")
        wait_until(lambda: there.get("json").status_code == 200, what="the other's opening")


def test_the_next_request_is_refused_although_the_worker_was_not_told(live, issue):
    issued = issue()
    live.run(live.gateway._changes.stop())
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        switch(True)
        assert_refused(client.get("json"), 503, "gateway_closed")


@pytest.mark.parametrize("told", [True, False])
def test_open_streams_and_sockets_end(live, issue, told):
    issued = issue()
    if not told:
        live.run(live.gateway._changes.stop())
    with open_socket(live, issued.secret) as peer, live.client(issued.secret) as client:
        peer.send("hello")
        peer.recv(20)
        with client.stream("GET", STREAM) as stream:
            assert cut_after(stream, lambda: switch(True)) < CUT_WITHIN
        with pytest.raises(Exception, match="gateway_closed"):
            peer.recv(20)


def test_without_redis_workers_learn_of_it_from_postgresql(settings, upstream, transactional_db, issue):
    issued = issue()
    with own_redis() as own:
        settings.REDIS_URL = own.url
        settings.REDIS_TIMEOUT = 0.3
        with LiveGateway().running() as live, live.client(issued.secret) as client:
            own.stop()
            wait_until(lambda: not live.gateway.link.up, what="the loss of Redis")
            with client.stream("GET", STREAM) as stream:
                assert cut_after(stream, lambda: switch(True)) < CUT_WITHIN
            assert_refused(client.get("json"), 503, "gateway_closed")
            switch(False)
            wait_until(lambda: client.get("json").status_code == 200, what="the gateway's opening")


def test_a_redis_that_forgot_or_remembers_the_old_is_put_right(live, issue):
    client = redis_client.client()
    switch(True)
    client.delete(keys.gate())
    tasks.publish_switch()
    assert client.exists(keys.gate())
    switch(False)
    client.set(keys.gate(), "1")
    tasks.publish_switch()
    assert not client.exists(keys.gate())


def test_switching_is_recorded_once(transactional_db):
    assert administration.switch_gateway(closed=True, actor=None, reason="first") is True
    assert administration.switch_gateway(closed=True, actor=None, reason="again") is False
    assert administration.switch_gateway(closed=False, actor=None, reason="over") is True

    assert list(
        OutboxEvent.objects.filter(event__startswith="gateway.")
        .order_by("created_at")
        .values_list("event", "data__reason")
    ) == [("gateway.closed", "first"), ("gateway.opened", "over")]
    assert GatewaySwitch.objects.get().reason == "over"


# --- two processes on one Redis


@pytest.fixture
def workers(settings, upstream, transactional_db):
    with web_servers(settings, upstream.url, 2, GATEWAY_LEASE_SECONDS=str(LEASE)) as pair:
        yield pair


class Held:
    """An open stream and an open WebSocket at each process; ``ended`` fills with when each was cut."""

    def __init__(self, workers, secret, device=DEVICE):
        self._left = contextlib.ExitStack()
        self.ended: list[float] = []
        self.threads = []
        headers = {"X-Access-Token": secret, "X-Device-ID": device}
        for worker in workers:
            client = self._left.enter_context(httpx.Client(headers=headers, timeout=20, trust_env=False))
            stream = self._left.enter_context(client.stream("GET", f"{worker.proxy}/{STREAM}"))
            assert stream.status_code == 200
            pieces = stream.iter_raw()
            next(pieces)
            peer = self._left.enter_context(open_socket(worker, secret, device=device))
            peer.send("hello")
            peer.recv(10)
            self.threads += [
                threading.Thread(target=self._until_cut, args=(lambda pieces=pieces: next(pieces),), daemon=True),
                threading.Thread(target=self._until_cut, args=(lambda peer=peer: peer.recv(20),), daemon=True),
            ]
        for thread in self.threads:
            thread.start()

    def _until_cut(self, receive):
        with contextlib.suppress(Exception):
            while True:
                receive()
        self.ended.append(time.monotonic())

    def until_cut(self, started):
        """Return the seconds from ``started`` to the end of the last of them."""
        for thread in self.threads:
            thread.join(CUT_WITHIN + 10)
        assert len(self.ended) == len(self.threads), "something is still open"
        self._left.close()
        return max(self.ended) - started


def changes(issued):
    """What happens to a token, and how its next request is refused."""
    token = issued.token

    def narrow():
        AccessToken.objects.filter(pk=token.pk).update(scope_id="certificates_only")
        credentials_changed.send(sender=AccessToken, digests=[token.digest], token_ids=[token.pk], revoked=False)

    def expire():
        AccessToken.objects.filter(pk=token.pk).update(expires_at=token.activated_at)
        credentials_changed.send(sender=AccessToken, digests=[token.digest], token_ids=[token.pk], revoked=False)

    def disable():
        set_user_active(user_id=token.owner_id, active=False, actor=None, reason="a test")

    yield "scope changed", narrow, (403, "scope_forbidden")
    yield "owner disabled", disable, (401, "owner_disabled")
    yield "expired", expire, (401, "token_expired")
    yield "revoked", lambda: revoke_token(token_id=token.pk, actor=None, refund=False), (401, "token_revoked")
    yield "gateway closed", lambda: switch(True), (503, "gateway_closed")


def test_every_change_reaches_both_processes(workers, issue):
    """The next request is refused, and streams and WebSockets at both processes end within two seconds."""
    for position in range(5):
        issued = issue()
        held = Held(workers, issued.secret)
        issued.reload()
        name, act, (status, code) = list(changes(issued))[position]
        act()
        started = time.monotonic()
        for worker in workers:
            assert_refused(worker.get("json", issued.secret), status, code)
        took = held.until_cut(started)
        logger.warning("%s: all cut after %.0f ms", name, took * 1000)
        assert took < CUT_WITHIN, name


def test_a_killed_process_frees_its_leases_and_servers(workers, upstream, issue, allow):
    """kill -9: what it held is free when the leases end, and not before."""
    issued = issue()
    allow(issued, concurrent_requests=2)
    victim, other = workers
    headers = {"X-Access-Token": issued.secret, "X-Device-ID": DEVICE}
    [server] = from_settings()

    def in_flight():
        return live_states([server.id])[server.id].in_flight

    held = []
    with contextlib.ExitStack() as left:
        for _ in range(2):
            client = left.enter_context(httpx.Client(headers=headers, timeout=20, trust_env=False))
            stream = left.enter_context(client.stream("GET", f"{victim.proxy}/{STREAM}"))
            held.append(stream.iter_raw())
            next(held[-1])
        wait_until(lambda: in_flight() == 2, what="the news of what is in flight")
        assert_refused(other.get("json", issued.secret), 429, "concurrency_limited")
        victim.kill()
        killed = time.monotonic()
        assert_refused(other.get("json", issued.secret), 429, "concurrency_limited")
        wait_until(
            lambda: other.get("json", issued.secret).status_code == 200, seconds=LEASE + 5, what="the leases' end"
        )
        assert time.monotonic() - killed < LEASE + 5
        # Nobody takes its word back; it is not believed for longer than it would have repeated it.
        wait_until(lambda: in_flight() == 0, what="the end of what the dead process had in flight")

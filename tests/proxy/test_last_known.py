"""A worker that starts while PostgreSQL is away goes by what the others read last."""

from __future__ import annotations

import pytest
import redis

from proxy import keys
from proxy.last_known import pack_rules, pack_targets, unpack_rules, unpack_targets
from proxy.models import UpstreamTarget
from proxy.scopes import Rule
from proxy.targets import TargetSpec, from_settings
from tests.proxy.live import LiveGateway
from tests.proxy.processes import web_servers
from tests.proxy.test_refusals import assert_refused
from tests.upstream import wait_until
from zenzefi.lib import redis as redis_client

#: Nothing listens there.
NOWHERE = "http://127.0.0.1:9"


def test_rules_and_servers_come_back_as_they_were(settings):
    rules = [
        Rule("certificates_only", "certificates/…"),
        Rule("certificates_only", "certificates/private", "GET", True),
    ]
    specs = [
        TargetSpec(id="1", name="one", url="https://one.example", weight=3, scopes=frozenset({b"b", b"a"})),
        TargetSpec(id="2", name="two", url="http://two.example", client_certificate="cert", client_key="the key"),
    ]
    packed = pack_targets(specs)

    assert unpack_rules(pack_rules(rules).encode()) == rules
    assert unpack_targets(packed.encode()) == specs
    assert "the key" not in packed


def test_servers_of_the_environment_are_each_workers_own(settings):
    packed = pack_targets(from_settings())
    settings.ZENZEFI_TARGET_URLS = ["http://another.example"]
    assert unpack_targets(packed.encode()) == from_settings()


def test_a_key_sealed_under_another_secret_is_no_obstacle_to_the_rules(settings, upstream, transactional_db):
    rules = [Rule("certificates_only", "certificates/…")]

    async def keep_and_read():
        known = live.gateway._last_known
        known.keep_rules(rules)
        known.keep_targets([TargetSpec(id="1", name="one", url="http://one.example", client_key="the key")])
        settings.SECRET_KEY = "another" * 10
        return await known.read()

    with LiveGateway().running() as live:
        assert live.run(keep_and_read()) == (rules, None)


def test_a_worker_serves_as_the_others_did(settings, upstream, transactional_db, issue):
    UpstreamTarget.objects.create(name="one", url=upstream.url)
    warm, restricted = issue(), issue(scope="certificates_only")
    with web_servers(settings, NOWHERE, gated=True, DATABASE_TIMEOUT="4") as [server]:
        assert server.get("json", warm.secret).status_code == 200
        assert server.get("certificates/filter", restricted.secret).status_code == 200
        wait_until(lambda: redis_client.client().hlen(keys.last_known()) == 2, what="what was read")
        assert server.gate is not None
        server.gate.close()
        [old] = server.workers()
        old.kill()
        wait_until(lambda: old not in server.workers(), what="the end of the worker")
        server.await_start()

        assert server.get("json", warm.secret).status_code == 200
        assert server.get("certificates/filter", restricted.secret).status_code == 200
        assert_refused(server.get("json", restricted.secret), 403, "scope_forbidden")

        # And learns what has changed as soon as it is told.
        UpstreamTarget.objects.update(state="disabled")
        server.gate.open()
        wait_until(lambda: server.get("json", warm.secret).status_code == 503, what="a look at the rows")


@pytest.mark.parametrize("written", [None, b"[{}]", b"{", b'[{"scope": "full", "unheard": 1}]'])
def test_what_cannot_be_read_is_no_obstacle(settings, upstream, transactional_db, issue, monkeypatch, written):
    """Of an earlier or later version, of another SECRET_KEY, or never written."""
    issued, restricted = issue(), issue(scope="certificates_only")
    client: redis.Redis = redis_client.client()

    async def away(*_: object, **__: object) -> None:
        """Read nothing, as without PostgreSQL."""

    with LiveGateway().running() as first, first.client(issued.secret) as visitor:
        assert visitor.get("json").status_code == 200
        with first.client(restricted.secret) as other:
            assert other.get("certificates/filter").status_code == 200
    client.delete(keys.last_known())
    if written is not None:
        client.hset(keys.last_known(), mapping={"rules": written, "targets": written})
    monkeypatch.setattr("proxy.gateway.Gateway._load_rules", away)
    monkeypatch.setattr("proxy.gateway.Gateway._load_targets", away)
    with LiveGateway().running() as second:
        with second.client(issued.secret) as visitor:
            assert visitor.get("json").status_code == 200
        with second.client(restricted.secret) as other:
            assert_refused(other.get("certificates/filter"), 503, "service_unavailable")

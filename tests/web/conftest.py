"""A monitor without a past for each test, and servers that accept and then say nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from django.db import connections

from tests.upstream import RecordingUpstream
from zenzefi.lib import health
from zenzefi.lib import redis as redis_client


@pytest.fixture(autouse=True)
def _fresh_health(monkeypatch: pytest.MonkeyPatch, settings, django_db_setup: None) -> Iterator[None]:
    """Nothing is known yet, and the upstream is a port where nobody listens unless a test says otherwise."""
    health.draining.clear()
    monkeypatch.setattr(health, "monitor", health.standard_monitor())
    health.migrated.clear()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{nobody.getsockname()[1]}"]
        client = redis_client.client()
        client.delete(redis_client.key("heartbeat", "celery"))
        yield
        client.delete(redis_client.key("heartbeat", "celery"))
        health.draining.clear()


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    server = RecordingUpstream().start()
    yield server
    server.stop()


@pytest.fixture
def everything_works(settings, upstream: RecordingUpstream) -> None:
    settings.ZENZEFI_TARGET_URLS = [upstream.url]
    health.record_heartbeat()


@pytest.fixture
def frozen() -> Iterator[int]:
    """The port of a server whose kernel accepts connections while its process does not run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        yield listener.getsockname()[1]


@pytest.fixture
def database_at(monkeypatch: pytest.MonkeyPatch):
    """Move PostgreSQL to a port of this machine, for everyone who connects from now on; ``None`` moves it back."""
    options = connections["default"].settings_dict
    home = {name: options[name] for name in ("HOST", "PORT")}

    def move(port: int | None) -> None:
        there = home if port is None else {"HOST": "127.0.0.1", "PORT": str(port)}
        for name, value in there.items():
            monkeypatch.setitem(options, name, value)

    return move


@pytest.fixture
def database_named(monkeypatch: pytest.MonkeyPatch):
    """Use another database of the same server."""

    def use(name: str) -> None:
        monkeypatch.setitem(connections["default"].settings_dict, "NAME", name)

    return use


@pytest.fixture
def redis_at(settings):
    """Move Redis to a port of this machine, for health's own connections."""

    def move(port: int) -> None:
        settings.REDIS_URL = f"redis://:redis-secret@127.0.0.1:{port}/0"

    return move

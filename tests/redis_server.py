"""A Redis of a test's own, to stop, freeze and start again."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zenzefi.lib import redis as redis_client
from zenzefi.runtime.redis_server import RedisServer


@pytest.fixture
def own_redis(settings: Any) -> Iterator[RedisServer]:
    """A running server that the settings point to for this test."""
    # Not tmp_path: a socket's name may have 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="zen-"))
    server = RedisServer(
        data=directory / "data", sock=directory / "redis.sock", log=directory / "redis.log", fsync=False
    )
    start(server)
    settings.REDIS_URL = f"unix://{server.sock}?db=0"
    settings.REDIS_TIMEOUT = 0.3
    yield server
    thaw(server)
    server.stop()
    shutil.rmtree(directory)


def start(server: RedisServer) -> None:
    server.ensure(lambda _: None, lambda: None)


def freeze(server: RedisServer) -> None:
    """Let it accept connections and answer nothing, as a server that swaps or whose disk hangs."""
    for process in server.running():
        process.send_signal(signal.SIGSTOP)


def thaw(server: RedisServer) -> None:
    for process in server.running():
        process.send_signal(signal.SIGCONT)


def forget_keys(prefix: str, client: Any = None) -> None:
    """Empty Redis of the keys that begin so. Never the suite's of all: other workers' tests are at work in it."""
    client = client or redis_client.client()
    if keys := list(client.scan_iter(match=f"{prefix}*", count=1000)):
        client.delete(*keys)

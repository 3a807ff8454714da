"""A worker that serves a Unix socket beside its port, for the nginx on the same machine."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import unix_connect

from tests.proxy.live import DEVICE
from tests.proxy.processes import WebServer, web_servers
from tests.upstream import wait_until

# gunicorn in processes of its own.
pytestmark = [pytest.mark.slow]


@contextlib.contextmanager
def served(settings, upstream, **environment: Any) -> Iterator[tuple[WebServer, Path]]:
    with tempfile.TemporaryDirectory(prefix="zu") as directory:
        path = Path(directory) / "web.sock"
        with web_servers(settings, upstream.url, UNIX_SOCKET=str(path), **environment) as [server]:
            yield server, path


def over(path: Path, secret: str, **headers: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=20) as client:
        return client.get(
            "http://zenzefi.example/api/v1/proxy/json",
            headers={"X-Access-Token": secret, "X-Device-ID": DEVICE, **headers},
        )


def who_asked(upstream) -> list[list[bytes]]:
    """What the upstream was told of those who asked, without its probes."""
    return [one.header("x-forwarded-for") for one in upstream.requests if one.target == b"/json"]


def test_who_comes_over_it_is_this_machine(settings, upstream, transactional_db, issue):
    issued = issue()
    with served(settings, upstream) as (server, path):
        # The other users of the machine may come, as they may to the port on loopback.
        assert path.is_socket() and path.stat().st_mode & 0o777 == 0o777
        assert over(path, issued.secret, **{"X-Forwarded-For": "198.51.100.7"}).status_code == 200
        assert server.get("json", issued.secret).status_code == 200
        assert who_asked(upstream) == [[b"127.0.0.1"]] * 2

        headers = {"X-Access-Token": issued.secret, "X-Device-ID": DEVICE}
        with unix_connect(
            str(path), "ws://zenzefi.example/api/v1/proxy/ws", additional_headers=headers, close_timeout=5
        ) as peer:
            peer.send("over a socket in the file system")
            assert peer.recv(10) == "over a socket in the file system"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/health", timeout=20).status_code == 200

        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: over(path, issued.secret).status_code == 200, what="an answer after a reload")
        assert server.stop() == 0
        assert not path.exists()


def test_a_trusted_proxy_on_it_says_who_asks(settings, upstream, transactional_db, issue):
    issued = issue()
    with served(settings, upstream, TRUSTED_PROXIES="127.0.0.1") as (_, path):
        assert over(path, issued.secret, **{"X-Forwarded-For": "198.51.100.7"}).status_code == 200
        assert who_asked(upstream) == [[b"198.51.100.7, 127.0.0.1"]]

"""Gateways as production serves them: gunicorn with its workers, in processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import psutil

from tests.proxy.live import DEVICE
from tests.proxy.servers import Gate
from tests.upstream import unused_port, wait_until


def database_url(settings: Any, *, host: str | None = None) -> str:
    """Return the URL of this test's database; ``host`` is a directory with another socket to reach it by."""
    database = settings.DATABASES["default"]
    host = host or str(database["HOST"])
    credentials = quote(database["USER"], safe="")
    if database["PASSWORD"]:
        credentials += ":" + quote(database["PASSWORD"], safe="")
    if host.startswith("/"):
        port = f"&port={database['PORT']}" if database["PORT"] and host == database["HOST"] else ""
        return f"postgresql://{credentials}@/{database['NAME']}?host={host}{port}"
    return f"postgresql://{credentials}@{host}:{database['PORT'] or 5432}/{database['NAME']}"


class WebServer:
    """gunicorn's master and its workers on a port of their own, before the database and the Redis of this test.

    With ``directory`` PostgreSQL is reached through a :class:`Gate` in it.
    """

    def __init__(
        self, settings: Any, upstream_url: str, *, directory: str | None = None, workers: int = 1, **environment: str
    ) -> None:
        database = settings.DATABASES["default"]
        self.gate: Gate | None = None
        if directory is not None:
            self.gate = Gate(f"{directory}/.s.PGSQL.5432", f"{database['HOST']}/.s.PGSQL.{database['PORT'] or '5432'}")
            self.gate.open()
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "python:zenzefi.runtime.gunicorn_conf"],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "zenzefi.settings.base",
                "DATABASE_URL": database_url(settings, host=directory),
                "REDIS_URL": settings.REDIS_URL,
                "REDIS_PREFIX": settings.REDIS_PREFIX,
                "ZENZEFI_TARGET_URL": upstream_url,
                "HOST": "127.0.0.1",
                "PORT": str(self.port),
                "WEB_WORKERS": str(workers),
                "GATEWAY_SHUTDOWN_GRACE": "2",
                # A machine that is merely slow is not to be taken for neighbours that are away.
                "REDIS_TIMEOUT": "10",
                "DATABASE_TIMEOUT": "10",
                **environment,
            },
        )

    @property
    def proxy(self) -> str:
        return f"{self.url}/api/v1/proxy"

    def await_start(self) -> None:
        wait_until(self._serves, seconds=60, what="the web server")

    def _serves(self) -> bool:
        assert self.process.poll() is None, "the web server ended"
        try:
            return httpx.get(f"{self.proxy}/status", trust_env=False, timeout=5).status_code == 401
        except httpx.TransportError:
            return False

    def get(self, path: str, secret: str, device: str = DEVICE) -> httpx.Response:
        return self.ask("GET", path, secret, device)

    def ask(self, method: str, path: str, secret: str, device: str = DEVICE, **options: Any) -> httpx.Response:
        """Send one request over a connection of its own."""
        headers = {"X-Access-Token": secret, "X-Device-ID": device}
        return httpx.request(method, f"{self.proxy}/{path}", headers=headers, timeout=20, trust_env=False, **options)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def kill(self) -> None:
        """End every process of it at once, as ``kill -9`` does."""
        # Stopped first: it would start another worker, and its own end would let the workers stop in order.
        self.process.send_signal(signal.SIGSTOP)
        master = psutil.Process(self.process.pid)
        wait_until(lambda: master.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE), what="the master's halt")
        workers = self.workers()
        for worker in workers:
            worker.kill()
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not any(map(_runs, workers)), what="the end of the workers")

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(40)
        finally:
            if self.process.poll() is None:
                self.kill()
            if self.gate is not None:
                self.gate.close()


def _runs(process: psutil.Process) -> bool:
    # Whoever inherits it from its dead master may not care to bury it.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def web_servers(
    settings: Any, upstream_url: str, count: int = 1, *, gated: bool = False, workers: int = 1, **environment: str
) -> Iterator[list[WebServer]]:
    """Serve with this many gunicorns until the end of the block."""
    with contextlib.ExitStack() as left:
        servers = []
        for _ in range(count):
            # A socket's name may have about a hundred bytes; a test's own directory can be longer.
            directory = left.enter_context(tempfile.TemporaryDirectory(prefix="zp")) if gated else None
            server = WebServer(settings, upstream_url, directory=directory, workers=workers, **environment)
            left.callback(server.stop)
            servers.append(server)
        for server in servers:
            server.await_start()
        yield servers

"""The nginx of edge mode as ``deploy/nginx`` has it, in front of a gateway of a test, and what receives its log."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
from django.core.management import call_command

from proxy.edge_log import EdgeLog
from tests.proxy.live import DEVICE, LiveGateway
from tests.shipped_nginx import nginx_path, put_together
from tests.upstream import unused_port, wait_until

SECRET = "tests-only-edge-secret-0123456789abcdef"


def edge_mode() -> dict[str, Any]:
    """Return the settings of edge mode, for a carrier on this machine."""
    log = f"127.0.0.1:{unused_port(datagrams=True)}"
    return {"EDGE_SECRET": SECRET, "EDGE_LOG": log, "TRUSTED_PROXIES": [ipaddress.ip_network("127.0.0.0/8")]}


def nginx_program() -> str:
    program = nginx_path()
    assert program is not None, "nginx is missing"
    return program


class Carrier:
    """nginx with the shipped configuration; only addresses, accounts and folders are the test's own."""

    def __init__(
        self,
        directory: Path,
        *,
        gateway_port: int,
        workers: int = 1,
        debug: bool = False,
        edge_config: Callable[[str], object] | None = None,
    ) -> None:
        """``edge_config`` runs that command elsewhere than in this process."""
        self.directory = directory
        self.port = unused_port()
        self._gateway_port = gateway_port
        self._workers = workers
        self._process: subprocess.Popen[bytes] | None = None
        self._error_level = "debug" if debug else "warn"
        self._edge_config = edge_config or _edge_config

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def configuration(self) -> Path:
        return self.directory / "zenzefi"

    @property
    def errors(self) -> str:
        """What nginx complained of."""
        return (self.directory / "error.log").read_text()

    def write(self) -> None:
        """Put the configuration together, the generated part by the command that operators use."""
        put_together(
            self.directory,
            listen=f"127.0.0.1:{self.port}",
            gateway=f"127.0.0.1:{self._gateway_port}",
            workers=self._workers,
            log_level=self._error_level,
        )
        self.write_servers()

    def write_servers(self) -> None:
        self._edge_config(str(self.configuration))

    def start(self) -> Self:
        (self.directory / "error.log").touch()
        command = [nginx_program(), "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]
        with (self.directory / "output.log").open("wb") as output:
            self._process = subprocess.Popen(command, stderr=output, stdin=subprocess.DEVNULL)

        def accepts() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise AssertionError(f"nginx did not start: {(self.directory / 'output.log').read_text()}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(accepts, seconds=10, what="nginx")
        return self

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(1)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def client(self, token: str | None = None, *, device: str | None = DEVICE) -> httpx.Client:
        """Return an HTTP client for paths below the proxy's prefix, through nginx."""
        headers = {"Accept-Encoding": "identity"}
        if token is not None:
            headers["X-Access-Token"] = token
        if device is not None:
            headers["X-Device-ID"] = device
        return httpx.Client(base_url=f"{self.url}/api/v1/proxy/", headers=headers, timeout=15, trust_env=False)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


def _edge_config(directory: str) -> None:
    with Path(os.devnull).open("w") as nowhere:
        call_command("edge_config", directory, stdout=nowhere)


@contextlib.contextmanager
def carrier(directory: Path, live: LiveGateway, **options: bool | int) -> Iterator[Carrier]:
    one = Carrier(directory, gateway_port=live.port, **options)  # type: ignore[arg-type]
    one.write()
    one.start()
    try:
        yield one
    finally:
        one.stop()


@contextlib.contextmanager
def edge_log(live: LiveGateway) -> Iterator[EdgeLog]:
    """Receive the log in the gateway's event loop."""

    async def start() -> EdgeLog:
        log = EdgeLog()
        await log.start()
        return log

    log = live.run(start())
    try:
        yield log
    finally:
        live.run(log.stop())

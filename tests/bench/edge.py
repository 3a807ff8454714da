"""Edge mode: nginx as ``deploy/nginx`` configures it in front of a gateway that hands requests over to it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench.gateway import Gateway
from tests.bench.nginx import SMALL_SIZE, Front, nginx_program
from tests.bench.processes import REPOSITORY, BenchError, family_of, running
from tests.shipped_nginx import put_together
from tests.upstream import unused_port, wait_until


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What the gateway and its carrier have to agree on."""

    secret: str
    log: str

    def environment(self) -> dict[str, str]:
        return {"EDGE_SECRET": self.secret, "EDGE_LOG": self.log, "TRUSTED_PROXIES": "127.0.0.1"}


def edge_settings() -> EdgeSettings:
    return EdgeSettings(secret="bench-" + os.urandom(20).hex(), log=f"127.0.0.1:{unused_port(datagrams=True)}")


def _configure(directory: Path, port: int, gateway: Front, workers: int, environment: dict[str, str]) -> None:
    """Put together what ships and what `manage.py edge_config` writes."""
    put_together(
        directory,
        listen=f"127.0.0.1:{port}",
        gateway=f"unix:{environment['UNIX_SOCKET']}",
        workers=workers,
        log_level="crit",
    )
    command = [sys.executable, "manage.py", "edge_config", str(directory / "zenzefi")]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise BenchError(f"edge_config failed: {done.stderr.strip()}")


@contextlib.contextmanager
def edge_front(directory: Path, gateway: Gateway, *, name: str, workers: int = 1) -> Iterator[Front]:
    """nginx before a gateway whose processes count as its own, as does the one that reads its log."""
    port = unused_port()
    _configure(directory, port, gateway.front, workers, gateway.environment)
    meters = gateway.meters()
    log = directory / "output.log"
    command = [nginx_program(), "-p", str(directory), "-c", str(directory / "nginx.conf")]
    with running(command, log=log) as child:

        def accepts() -> bool:
            if child.poll() is not None:
                raise BenchError(f"nginx did not start: {log.read_text().strip()}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(accepts, seconds=10, what="nginx")
        front = Front(
            name,
            f"http://127.0.0.1:{port}/api/v1/proxy",
            lambda: [*family_of(child.pid), *gateway.front.processes(), *meters],
            gateway.front.headers,
        )
        answer = httpx.get(front.url(f"/{SMALL_SIZE}"), headers=front.headers, timeout=30, trust_env=False)
        if answer.status_code != 200 or len(answer.content) != SMALL_SIZE:
            raise BenchError(f"{name} answered {answer.status_code}: {answer.text[:300]}")
        yield front

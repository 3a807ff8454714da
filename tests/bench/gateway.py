"""The gateway as `manage.py up` runs it, with a paid token, in a data directory of its own."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

from tests.bench.nginx import SMALL_SIZE, Front
from tests.bench.processes import REPOSITORY, BenchError, family_of, running
from tests.upstream import unused_port
from zenzefi.runtime import embedded

START_WITHIN_SECONDS = 120
# manage.py up drains, stops every role and then both servers before it leaves.
STOP_WITHIN_SECONDS = 60
# Of what the caller's shell may say about this project nothing applies here.
FOREIGN_VARIABLES = (
    "DATABASE_URL",
    "REDIS_URL",
    "DJANGO_SETTINGS_MODULE",
    "BACKEND_URL",
    "FRONTEND_URL",
    "ALLOWED_HOSTS",
    "SECRET_KEY",
    "PROMETHEUS_MULTIPROC_DIR",
    "PAYMENT_PROVIDERS",
    "TRUSTED_PROXIES",
    "ZENZEFI_CA_FILE",
)


@dataclass(frozen=True, slots=True)
class Gateway:
    front: Front
    supervisor: int
    redis_pid: int
    environment: dict[str, str]

    def workers(self) -> list[psutil.Process]:
        """gunicorn's worker processes: those that carry the bytes."""
        found = []
        for process in family_of(self.supervisor):
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = process.parent()
                if _is_gunicorn(process) and parent is not None and _is_gunicorn(parent):
                    found.append(process)
        return found

    def meters(self) -> list[psutil.Process]:
        """What receives the log of a carrier in front."""
        return [one for one in family_of(self.supervisor) if "edge_meter" in one.cmdline()]

    def broker(self) -> list[psutil.Process]:
        """The Redis server that answers for every request."""
        return [psutil.Process(self.redis_pid)]


def _is_gunicorn(process: psutil.Process) -> bool:
    return any("gunicorn" in part for part in process.cmdline())


def _environment(*, var_dir: Path, port: int, target: str, workers: int, extra: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    return {
        **inherited,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "VAR_DIR": str(var_dir),
        "ZENZEFI_TARGET_URL": target,
        "WEB_WORKERS": str(workers),
        # The limits stay on and are counted on every request; only nobody reaches them.
        "RATE_LIMIT_PROXY": "100000000/60",
        "RATE_LIMIT_API": "100000/60",
        "LOG_LEVEL": "WARNING",
        **extra,
    }


def _expect(answer: httpx.Response, status: int) -> Any:
    if answer.status_code != status:
        raise BenchError(
            f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}, "
            f"not {status}: {answer.text[:300]}"
        )
    return answer.json()


def _buy_token(base_url: str) -> str:
    """The walk of a new customer: register, sign in, top up, buy 24 hours."""
    name = f"bench{secrets.token_hex(4)}"
    credentials = {"email": f"{name}@example.com", "password": secrets.token_urlsafe(18)}
    with httpx.Client(base_url=f"{base_url}/api/v1", timeout=30, trust_env=False) as client:
        _expect(client.post("/auth/register", json={**credentials, "username": name}), 201)
        access = _expect(client.post("/auth/login", json=credentials), 200)["access_token"]
        client.headers["Authorization"] = f"Bearer {access}"
        _expect(client.post("/currency/mock-purchase", json={"amount": "100.00"}), 201)
        token = _expect(client.post("/tokens/purchase", json={"duration_hours": 24}), 201)["token"]
    return str(token)


def _prove(front: Front) -> None:
    """One request end to end, which also starts the token's clock; refuses to measure without a rate limit."""
    answer = httpx.get(front.url(f"/{SMALL_SIZE}"), headers=front.headers, timeout=30, trust_env=False)
    if answer.status_code != 200 or len(answer.content) != SMALL_SIZE:
        raise BenchError(f"the gateway answered {answer.status_code}: {answer.text[:300]}")
    if "RateLimit" not in answer.headers:
        raise BenchError("the gateway's answer carries no RateLimit: is its limit switched off?")


def _wait_for_health(base_url: str, supervisor: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_SECONDS
    while True:
        if supervisor.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise BenchError(f"the gateway did not start:\n{tail}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{base_url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)


@contextlib.contextmanager
def gateway(
    directory: Path, *, target: str, workers: int = 1, extra: dict[str, str] | None = None
) -> Iterator[Gateway]:
    """Starts everything `make run` starts, in front of `target`, and sells itself a token."""
    if not (REPOSITORY / "manage.py").is_file():
        raise BenchError("manage.py is missing: this is not a checkout of the whole project.")
    directory.mkdir(parents=True)
    var_dir, port, log = directory / "var", unused_port(), directory / "up.log"
    base_url = f"http://127.0.0.1:{port}"
    environment = _environment(var_dir=var_dir, port=port, target=target, workers=workers, extra=extra or {})
    command = [sys.executable, "manage.py", "up"]
    with running(command, log=log, env=environment, stop_within=STOP_WITHIN_SECONDS) as supervisor:
        try:
            _wait_for_health(base_url, supervisor, log)
            headers = {"X-Access-Token": _buy_token(base_url), "X-Device-ID": "bench-device-0001"}
            with redis.Redis.from_url(embedded.redis_url(var_dir)) as client:
                redis_pid = int(client.info("server")["process_id"])
            found: list[Gateway] = []

            def processes() -> list[psutil.Process]:
                return [*found[0].workers(), *found[0].broker()]

            front = Front("gateway", f"{base_url}/api/v1/proxy", processes, headers)
            found.append(Gateway(front, supervisor.pid, redis_pid, environment))
            _prove(front)
            if len(found[0].workers()) != workers:
                raise BenchError(f"{len(found[0].workers())} gateway workers run, not {workers}.")
            yield found[0]
        finally:
            # What manage.py up starts leaves with it only if it may stop in its own order.
            if supervisor.poll() is None:
                supervisor.send_signal(signal.SIGTERM)
                with contextlib.suppress(Exception):
                    supervisor.wait(STOP_WITHIN_SECONDS)

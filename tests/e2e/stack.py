"""The whole platform as ``make run`` starts it, on a free port and a data directory of its own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.upstream import unused_port

ROOT = Path(__file__).resolve().parents[2]

#: Variables of the machine that runs the tests must not leak into the platform under test.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "USER", "VIRTUAL_ENV")


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Wait until the condition holds and return how many seconds that took; fail when it does not."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if condition():
            return time.monotonic() - begin
        time.sleep(0.05)
    raise AssertionError(f"Not within {seconds} s: {what}")


class Stack:
    """One running platform."""

    def __init__(self, var_dir: Path, **variables: str) -> None:
        self.var_dir = var_dir
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            "VAR_DIR": str(var_dir),
            "PORT": str(self.port),
            "RATE_LIMIT_AUTH": "100000/60",
            "RATE_LIMIT_API": "1000000/60",
            **variables,
        }
        self.log = var_dir.parent / f"{var_dir.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[httpx.Client] = []

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._serves, seconds=90, what=f"the platform serves; see its log:\n{self.output()[-3000:]}")

    def _serves(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"It ended with {self.process.returncode}:\n{self.output()[-3000:]}")
        return self.healthy()

    def healthy(self) -> bool:
        """Whether ``/health/ready`` answers 200 at this moment."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another ``manage.py`` command beside it."""
        result = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def descendants(self) -> Iterator[psutil.Process]:
        assert self.process is not None
        yield from psutil.Process(self.process.pid).children(recursive=True)

    def web_workers(self) -> list[psutil.Process]:
        """Return the worker processes of gunicorn, not its arbiter."""
        arbiters = [
            process for process in self.descendants() if _is_gunicorn(process) and not _is_gunicorn(process.parent())
        ]
        return [child for arbiter in arbiters for child in arbiter.children()]

    def client(self, **options: object) -> httpx.Client:
        client = httpx.Client(base_url=self.url, timeout=20, trust_env=False, **options)  # type: ignore[arg-type]
        self._clients.append(client)
        return client

    def customer(self, *, balance: str = "100.00") -> Customer:
        """Register a new customer and top the account up."""
        return Customer(self, balance=balance)


def _is_gunicorn(process: psutil.Process | None) -> bool:
    try:
        return process is not None and any("gunicorn" in part for part in process.cmdline())
    except psutil.Error:
        return False


class Customer:
    """A registered, signed-in user of a running platform."""

    def __init__(self, stack: Stack, *, balance: str) -> None:
        name = f"customer-{secrets.token_hex(6)}"
        password = secrets.token_urlsafe(16)
        self.email = f"{name}@example.com"
        self.http = stack.client()
        self.post("/auth/register", 201, email=self.email, username=name, password=password)
        signed_in = self.post("/auth/login", 200, email=self.email, password=password)
        self.http.headers["Authorization"] = f"Bearer {signed_in['access_token']}"
        if balance != "0.00":
            self.post("/currency/mock-purchase", 201, amount=balance)

    def post(self, path: str, status: int, *, headers: dict[str, str] | None = None, **body: object) -> dict:
        response = self.http.post(f"/api/v1{path}", json=body, headers=headers)
        assert response.status_code == status, response.text
        return response.json()

    def get(self, path: str, status: int = 200) -> dict:
        response = self.http.get(f"/api/v1{path}")
        assert response.status_code == status, response.text
        return response.json()

    def balance(self) -> str:
        return self.get("/currency/balance")["balance"]

    def buy(self, hours: int = 24) -> dict:
        return self.post("/tokens/purchase", 201, duration_hours=hours)

    def proxied(self, token: str, path: str, *, device: str = "device-0001", **options: object) -> httpx.Response:
        """Send a GET through the gateway."""
        return self.http.get(
            f"/api/v1/proxy/{path}",
            headers={"X-Access-Token": token, "X-Device-ID": device},
            **options,  # type: ignore[arg-type]
        )


@contextmanager
def running(var_dir: Path, **variables: str) -> Iterator[Stack]:
    """Start a platform, yield it, and stop it whatever happens."""
    stack = Stack(var_dir, **variables)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()

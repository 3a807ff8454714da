"""What ``manage.py up`` does: all the platform needs, started in order, kept alive, stopped in order."""

from __future__ import annotations

import http.client
import math
import os
import secrets
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psycopg
import redis
from django.conf import settings

from zenzefi.runtime import embedded, processes, servers
from zenzefi.runtime.children import MARK, MOST_FAILURES, Child, program, survivors
from zenzefi.runtime.errors import StartError
from zenzefi.runtime.locks import FileLock
from zenzefi.runtime.terminal import Terminal

HEALTH_SECONDS = 90
# An instance that is just stopping gets this long before a new one gives up on its data directory.
HANDOVER_SECONDS = 30
# Below those that the system gives to outgoing connections: of these, one that is free now may not be any more when the
# demo server comes to listen on it, or comes back after its end.
DEMO_PORTS = range(20_000, 32_000)


class Stopped(Exception):
    """A signal asked us to stop while we were still starting."""


class Supervisor:
    """One run of the platform on one VAR_DIR."""

    def __init__(self) -> None:
        self.terminal = Terminal()
        self.directory = embedded.runtime_directory(settings.VAR_DIR)
        self.lock = FileLock(self.directory / embedded.SUPERVISOR_LOCK)
        self.lease: embedded.Lease | None = None
        self.listener: socket.socket | None = None
        self.unix_listener: socket.socket | None = None
        self.children: list[Child] = []
        self.selector = selectors.DefaultSelector()
        self.stopping = False
        self.hurry = False
        self.reason = ""

    def run(self) -> None:
        """Serve until a signal says otherwise. Raises StartError when that is not possible (any more)."""
        with self._signals():
            try:
                self._begin()
                self._supervise()
            except Stopped:
                pass
            finally:
                self.stopping = True
                self._end()

    # --- starting

    def _begin(self) -> None:
        self._claim()
        self._ensure_servers()
        environ = {**os.environ, MARK: str(self.directory), "PYTHONUNBUFFERED": "1"}
        environ.setdefault("DJANGO_SETTINGS_MODULE", settings.SETTINGS_MODULE)
        self._prepare(environ)
        demo = None
        if not settings.ZENZEFI_TARGET_URLS:
            demo = self._free_port()
            environ["ZENZEFI_TARGET_URL"] = f"http://127.0.0.1:{demo}"
        metrics = self._empty_directory("prometheus")
        settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)
        self.children = self._plan(environ, metrics, demo)
        self.terminal.say(f"Starting {', '.join(child.role for child in self.children)}")
        for child in self.children:
            self._start(child)
        self._await_health()
        self._announce()

    def _claim(self) -> None:
        """Take the data directory and the port, or say in one sentence who has them."""
        self.listener = self._bind()
        deadline = time.monotonic() + HANDOVER_SECONDS
        announced = False
        while not self.lock.acquire(block=False):
            holder, state, address = (*self.lock.read().split(), "", "", "")[:3]
            if state == "running" or time.monotonic() > deadline:
                raise StartError(
                    f"Zenzefi already runs on the data in {settings.VAR_DIR} (process {holder}, {address}): "
                    "stop it first, or choose another VAR_DIR and PORT."
                )
            if not announced:
                self.terminal.say("Waiting for the instance that is just stopping")
                announced = True
            time.sleep(0.1)
            self._check()
        self._note("running")
        left = survivors(str(self.directory))
        if left:
            self.terminal.say("Ending what an earlier run left behind")
            processes.end(left, [(signal.SIGTERM, 3), (signal.SIGKILL, 5)])
        if self.listener is None:
            self.listener = self._bind(final=True)

    def _bind(self, *, final: bool = False) -> socket.socket | None:
        """Bind HOST:PORT for gunicorn to inherit; None while an earlier run of ours may have it."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                settings.HOST, settings.PORT, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise StartError(f"HOST {settings.HOST!r} cannot be resolved: {error.strerror}.") from None
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            listener.close()
            ours = self.lock.read() or survivors(str(self.directory))
            if ours and not final:
                return None
            raise StartError(
                f"Port {settings.PORT} on {settings.HOST} is taken ({error.strerror}): stop what has it, "
                "or choose another PORT."
            ) from None
        return listener

    def _ensure_servers(self) -> None:
        self.lease = servers.ensure(self.terminal.say, check=self._check)
        try:
            with psycopg.connect(settings.DATABASE_URL, connect_timeout=5):
                pass
        except psycopg.OperationalError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StartError(f"The PostgreSQL of DATABASE_URL does not answer: {reason}") from None
        try:
            with redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=5, socket_timeout=5) as client:
                client.ping()
        except redis.RedisError as error:
            raise StartError(f"The Redis of REDIS_URL does not answer: {error}") from None

    def _prepare(self, environ: dict[str, str]) -> None:
        """Migrate and seed, in a process of its own: it can be stopped, and its connections are not ours."""
        self.terminal.say("Migrating the database")
        setup = Child("setup", [sys.executable, "manage.py", "prepare"], environ, stop_seconds=5)
        self._start(setup)
        try:
            while (code := setup.ended()) is None:
                self._pass_output(0.1)
                self._check()
        finally:
            self._stop(setup)
        if code != 0:
            raise StartError(f"The database could not be prepared ({_said(code)}); the lines above say why.")

    def _plan(self, environ: dict[str, str], metrics: Path, demo: int | None) -> list[Child]:
        """Return the children in the order of their start; they are stopped by ``_end`` in its own."""
        counted = {**environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        # In a container root is the usual user; the warning would only drown what follows it.
        quiet = "-Wignore:You're running the worker with superuser privileges"
        celery = [sys.executable, quiet, "-m", "celery", "-q", "-A", "zenzefi"]
        worker = [*celery, "worker", "--concurrency=2", f"--hostname=zenzefi@{self.directory.name}"]
        beat = [*celery, "beat", "--pidfile=", f"--schedule={settings.VAR_DIR / 'beat-schedule'}"]
        # Receives the log of the nginx in front, if there is one.
        meter = [sys.executable, "manage.py", "edge_meter"]
        plan = []
        if demo is not None:
            server = program("zenzefi.runtime.demo_upstream", "--host", "127.0.0.1", "--port", str(demo))
            plan.append(Child("upstream", server, environ, stop_seconds=2))
        return [
            *plan,
            # Its command is made when it starts.
            Child("web", (), counted, stop_seconds=math.ceil(settings.GATEWAY["shutdown_grace"]) + 6),
            # Tasks are acknowledged late and safe to run twice, so one that takes longer is simply repeated.
            Child("worker", [*worker, "--without-gossip", "--without-mingle"], counted, stop_seconds=3),
            Child("beat", beat, environ, stop_seconds=2),
            *([Child("edge", meter, counted, stop_seconds=5)] if settings.EDGE_SECRET else []),
        ]

    def _await_health(self) -> None:
        started = time.monotonic()
        announced = False
        while not self._healthy():
            waited = time.monotonic() - started
            if waited > HEALTH_SECONDS:
                raise StartError(f"/health does not answer with 200 after {HEALTH_SECONDS} s.")
            if waited > 1 and not announced:
                self.terminal.say("Waiting for /health")
                announced = True
            self._tick(0.1)
            self._check()

    def _check(self) -> None:
        """Raise Stopped when a signal has come. The handler itself raises nothing: it may run anywhere."""
        if self.stopping:
            raise Stopped

    def _healthy(self) -> bool:
        web = next(child for child in self.children if child.role == "web")
        if web.process is None:
            return False
        connection = http.client.HTTPConnection(_reachable(settings.HOST), settings.PORT, timeout=2)
        try:
            # A Host that ALLOWED_HOSTS admits, which the address may not be.
            connection.request("GET", "/health", headers={"Host": settings.ALLOWED_HOSTS[0].lstrip(".")})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _announce(self) -> None:
        base = _base_url()
        for line in (
            f"Zenzefi serves on {base}",
            f"  API documentation  {base}/docs",
            f"  Admin              {base}/admin/",
            f"  Gateway            {base}/api/v1/proxy/",
            f"  Health             {base}/health",
            "Ctrl-C stops everything.",
        ):
            self.terminal.say(line)

    # --- serving

    def _supervise(self) -> None:
        while not self.stopping:
            self._tick(0.5)
            self._revive_servers()

    def _tick(self, seconds: float) -> None:
        """Pass on output for at most ``seconds``, and start again what has died. Raises StartError."""
        self._pass_output(seconds)
        for child in self.children:
            code = child.ended()
            if code is not None:
                self._drop(child)
                delay = child.bury()
                if child.failures >= MOST_FAILURES:
                    raise StartError(
                        f"{child.role} ended {child.failures} times in a row, last with {_said(code)}; "
                        "its own lines above say why."
                    )
                self.terminal.say(f"{child.role} ended with {_said(code)}; starting it again in {delay:.1f} s")
            if child.process is None and time.monotonic() >= child.next_start:
                self._start(child)

    def _pass_output(self, seconds: float) -> None:
        for key, _ in self.selector.select(seconds):
            child: Child = key.data
            lines, at_end = child.read()
            for line in lines:
                self.terminal.say(line, role=child.role)
            if at_end:
                self.selector.unregister(key.fd)
        self.terminal.flush()

    def _start(self, child: Child) -> None:
        if child.role == "web":
            self._hand_listeners_to(child)
        child.start()
        self.selector.register(child.output, selectors.EVENT_READ, child)

    def _hand_listeners_to(self, web: Child) -> None:
        """Give gunicorn what it is to listen on. It takes a Unix socket's path away at its end, so each has its own."""
        assert self.listener is not None
        if settings.UNIX_SOCKET is not None:
            if self.unix_listener is not None:
                self.unix_listener.close()
            self.unix_listener = _bind_unix(settings.UNIX_SOCKET)
        web.inherited = tuple(one.fileno() for one in (self.listener, self.unix_listener) if one is not None)
        bind = [word for number in web.inherited for word in ("--bind", f"fd://{number}")]
        web.command = program("gunicorn", "-c", "python:zenzefi.runtime.gunicorn_conf", *bind)

    def _drop(self, child: Child) -> None:
        """Pass on a child's last words and stop listening to it."""
        if child.process is None or child.output not in self.selector.get_map():
            return
        for line in child.read()[0]:
            self.terminal.say(line, role=child.role)
        self.selector.unregister(child.output)

    def _revive_servers(self) -> None:
        assert self.lease is not None
        self.lease.revive(self.terminal.say)

    # --- stopping

    def _end(self) -> None:
        if self.lock.held:
            self._note("stopping")
        by_role = {child.role: child for child in self.children}
        if self.children or self.reason:
            self.terminal.say(f"Stopping after {self.reason}" if self.reason else "Stopping")
        # Ours as well as gunicorn's: connections are refused now, not left in a queue nobody serves.
        if self.listener is not None:
            self.listener.close()
        if self.unix_listener is not None:
            self.unix_listener.close()
        for role in ("web", "edge", "worker", "beat", "upstream"):
            if role in by_role:
                self._stop(by_role[role])
        if settings.UNIX_SOCKET is not None and self.unix_listener is not None:
            settings.UNIX_SOCKET.unlink(missing_ok=True)
        if self.lease is not None:
            self.lease.release()
        if self.lock.held:
            self.lock.remove()
        self.terminal.flush()

    def _stop(self, child: Child) -> None:
        child.terminate()
        deadline = time.monotonic() + child.stop_seconds
        while child.process is not None and child.ended() is None:
            if time.monotonic() > deadline or self.hurry:
                break
            self._pass_output(0.05)
        self._drop(child)
        child.close()

    # --- small things

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            # A second one is impatience.
            self.hurry = self.stopping
            self.stopping = True
            self.reason = signal.Signals(number).name

        wanted = [signal.SIGINT, signal.SIGTERM]
        # nohup ignores SIGHUP so that its command outlives the terminal.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        before = {number: signal.signal(number, on_signal) for number in wanted}
        # make does not pass every signal on, and none when it is killed.
        if "MAKELEVEL" in os.environ:
            processes.end_with_parent()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, state: str) -> None:
        self.lock.write(f"{os.getpid()} {state} {_base_url()}")

    def _empty_directory(self, name: str) -> Path:
        path = settings.VAR_DIR / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    @staticmethod
    def _free_port() -> int:
        while True:
            port = secrets.choice(DEMO_PORTS)
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port


def _bind_unix(path: Path) -> socket.socket:
    """Bind a Unix socket for gunicorn to inherit, in place of one that an earlier run left. Raises StartError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(os.fspath(path))
        # For whoever may enter the directory, as gunicorn makes its own: the nginx in front is another user.
        path.chmod(0o777)
    except OSError as error:
        listener.close()
        raise StartError(f"UNIX_SOCKET {path} cannot be made: {error.strerror}.") from None
    return listener


def _said(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - an answer, not a bind


def _base_url() -> str:
    host = _reachable(settings.HOST)
    return f"http://[{host}]:{settings.PORT}" if ":" in host else f"http://{host}:{settings.PORT}"

"""Whether the platform can serve: checks of what it leans on, each bounded, run beside each other.

A check is a function that returns an :class:`Outcome` or raises. At most one run of a check is under way in a
process: a neighbour that hangs costs one thread, however often health is asked for. Reports may reuse a result
that is at most a few seconds old, so probes of several monitors cost no more than one.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import redis
from django.conf import settings
from django.db import connections
from django.db.migrations.loader import MigrationLoader
from redis.backoff import NoBackoff
from redis.retry import Retry

from zenzefi.lib import redis as redis_client

Status = Literal["healthy", "degraded", "unhealthy"]

#: Seconds a check may take before it counts as failed.
CHECK_SECONDS = 2.0
#: Seconds a result is good for.
FRESH_SECONDS = 2.0
#: Seconds an older result stands in for a check that is still running, for reports that cannot wait.
STALE_SECONDS = 30.0
#: Seconds between two heartbeats of the workers, and the age at which they count as gone.
HEARTBEAT_SECONDS = 10
HEARTBEAT_MAX_AGE = 35

#: Set while this process finishes its last requests: ``/health/ready`` answers 503 so that no new ones come.
draining = threading.Event()
#: Set once the database was seen with all of this version's migrations; they are not taken back under us.
migrated = threading.Event()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found. ``error`` is for anyone; ``cause`` and ``urls`` may name hosts and are for operators."""

    status: Status = "healthy"
    error: str = ""
    cause: str = ""
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run of a check. ``finished_at`` is on the monotonic clock, in seconds."""

    outcome: Outcome
    latency_ms: float | None
    finished_at: float


class CheckFailed(Exception):
    """The neighbour does not serve; the text may be shown to anyone, ``cause`` to operators."""

    def __init__(self, error: str, cause: object = "", *, urls: tuple[str, ...] = ()) -> None:
        super().__init__(error)
        self.cause = str(cause)
        self.urls = urls


Check = Callable[[], Outcome]


class _Probe:
    """Runs one check, never twice at a time, and remembers how it went."""

    def __init__(self, name: str, check: Check) -> None:
        self.name = name
        self.check = check
        self.latest: Result | None = None
        self.ever_healthy = False
        self._state = threading.Condition()
        self._started_at: float | None = None

    def refresh(self, max_age: float) -> None:
        """Start a run unless one is under way or the latest result is at most ``max_age`` seconds old."""
        with self._state:
            if self._started_at is not None:
                return
            if self.latest is not None and time.monotonic() - self.latest.finished_at <= max_age:
                return
            self._started_at = time.monotonic()
            threading.Thread(target=self._run, name=f"health-{self.name}", daemon=True).start()

    def result(self, deadline: float, max_age: float) -> Result:
        """Return a result, waiting for the run under way until ``deadline`` (monotonic) at most."""
        with self._state:
            self._state.wait_for(lambda: self._started_at is None, timeout=max(0.0, deadline - time.monotonic()))
            now = time.monotonic()
            running = None if self._started_at is None else now - self._started_at
            latest = self.latest
        if running is None or (latest is not None and now - latest.finished_at <= max_age):
            assert latest is not None
            return latest
        if running >= CHECK_SECONDS - 0.05:
            return Result(Outcome("unhealthy", f"No answer within {CHECK_SECONDS:g} s."), None, now)
        if latest is not None and now - latest.finished_at <= STALE_SECONDS:
            return latest
        return Result(Outcome("degraded", "Not known yet."), None, now)

    def _run(self) -> None:
        started = time.monotonic()
        try:
            outcome = self.check()
        except CheckFailed as failed:
            outcome = Outcome("unhealthy", str(failed), failed.cause, failed.urls)
        except Exception as exc:
            outcome = Outcome("unhealthy", "The check failed.", f"{type(exc).__name__}: {exc}")
        finished = time.monotonic()
        with self._state:
            self.latest = Result(outcome, round((finished - started) * 1000, 1), finished)
            self.ever_healthy |= outcome.status == "healthy"
            self._started_at = None
            self._state.notify_all()


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all checks, by name."""

    checks: dict[str, Result]

    @property
    def status(self) -> Status:
        """``unhealthy`` when nothing can be served, ``degraded`` when something cannot.

        The gateway goes on from Redis while PostgreSQL is away and from PostgreSQL while Redis is, so one of
        the two suffices to serve.
        """
        statuses = {name: result.outcome.status for name, result in self.checks.items()}
        if all(statuses.get(name) == "unhealthy" for name in ("database", "redis")):
            return "unhealthy"
        if all(status == "healthy" for status in statuses.values()):
            return "healthy"
        return "degraded"


class Monitor:
    """The checks of this process."""

    def __init__(self) -> None:
        self._probes: dict[str, _Probe] = {}

    def register(self, name: str, check: Check) -> None:
        """Add a check, or replace the one of that name."""
        self._probes[name] = _Probe(name, check)

    def has_been_healthy(self, *names: str) -> bool:
        """Whether each of these checks has passed at least once in this process."""
        return all(self._probes[name].ever_healthy for name in names)

    def report(self, *, wait: float = CHECK_SECONDS, max_age: float = FRESH_SECONDS) -> Report:
        """Run what is not fresh and report, after at most ``wait`` seconds (never much more than CHECK_SECONDS)."""
        probes = list(self._probes.values())
        deadline = time.monotonic() + wait
        for probe in probes:
            probe.refresh(max_age)
        return Report({probe.name: probe.result(deadline, max_age) for probe in probes})


def without_password(url: str) -> str:
    """Return the URL as operators may see it."""
    parts = urlsplit(url)
    if parts.password is None and parts.username is None:
        return url
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}"))


def check_database() -> Outcome:
    """Ask PostgreSQL for a row over a connection of its own: a full pool must not look like a dead server."""
    parameters = connections["default"].get_connection_params()
    # libpq and psycopg know no connect timeout below two seconds; the report does not wait for it longer than that.
    parameters.update(connect_timeout=2, tcp_user_timeout=4000)
    urls = (f"postgresql://{parameters.get('host') or 'local socket'}/{parameters.get('dbname', '')}",)
    try:
        with psycopg.connect(**parameters, autocommit=True) as connection:
            connection.execute("SELECT 1")
            missing = "" if migrated.is_set() else _missing_migrations(connection)
    except psycopg.Error as exc:
        raise CheckFailed("PostgreSQL does not answer.", exc, urls=urls) from None
    if missing:
        return Outcome("degraded", "Migrations are missing.", missing, urls)
    migrated.set()
    return Outcome(urls=urls)


def _missing_migrations(connection: psycopg.Connection[Any]) -> str:
    """Name this version's migrations that the database has not seen; those of a later version do not matter."""
    wanted = set(MigrationLoader(None).graph.leaf_nodes())
    try:
        wanted -= set(connection.execute("SELECT app, name FROM django_migrations").fetchall())
    except psycopg.errors.UndefinedTable:
        pass
    return ", ".join(sorted(f"{app}.{name}" for app, name in wanted))


def _bounded_redis() -> redis.Redis:
    timeout = min(settings.REDIS_TIMEOUT, CHECK_SECONDS / 2)
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )


def check_redis() -> Outcome:
    """Ask Redis for an answer, over a connection of its own and without retries."""
    urls = (without_password(settings.REDIS_URL),)
    try:
        with _bounded_redis() as client:
            client.ping()
    except redis.RedisError as exc:
        raise CheckFailed("Redis does not answer.", exc, urls=urls) from None
    return Outcome(urls=urls)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server to ask. ``tls`` makes what its certificate is verified with; ``host`` goes into ``Host``."""

    url: str
    host: str = ""
    tls: Callable[[], ssl.SSLContext] | None = None


_list_upstreams: list[Callable[[], list[Upstream]]] = []


def register_upstreams(listing: Callable[[], list[Upstream]]) -> None:
    """Have the check of Zenzefi ask these servers. ``listing`` runs in a thread of its own."""
    _list_upstreams[:] = [listing]


def check_zenzefi() -> Outcome:
    """Ask every upstream for its root. Whatever it answers it is there, except that its own upstream is not."""
    targets = [upstream for listing in _list_upstreams for upstream in listing()]
    if not targets:
        raise CheckFailed("No upstream is configured.", "ZENZEFI_TARGET_URL is not set.")
    with ThreadPoolExecutor(max_workers=min(8, len(targets))) as pool:
        failures = [failure for failure in pool.map(_upstream_failure, targets) if failure]
    urls = tuple(without_password(target.url) for target in targets)
    if not failures:
        return Outcome(urls=urls)
    status: Status = "unhealthy" if len(failures) == len(targets) else "degraded"
    return Outcome(status, f"{len(failures)} of {len(targets)} upstreams do not answer.", "; ".join(failures), urls)


def _upstream_failure(upstream: Upstream) -> str:
    """Return why an upstream does not serve; empty when it does."""
    target = upstream.url
    headers = {"User-Agent": "zenzefi-health", **({"Host": upstream.host} if upstream.host else {})}
    try:
        certificates: Any = upstream.tls() if upstream.tls is not None and target.startswith("https:") else True
    except (OSError, ValueError) as exc:
        return f"{without_password(target)}: its certificates cannot be used: {exc}"
    # Two phases, connect and read, each at most half of what the check may take.
    timeout = httpx.Timeout(CHECK_SECONDS / 2 - 0.1)
    try:
        with (
            httpx.Client(verify=certificates, timeout=timeout, trust_env=False) as client,
            client.stream("GET", target, headers=headers) as response,
        ):
            if response.status_code in {502, 503, 504}:
                return f"{without_password(target)} answered {response.status_code}"
    except httpx.HTTPError as exc:
        return f"{without_password(target)}: {type(exc).__name__}: {exc}"
    return ""


# Redis's clock at both ends: those of the machines may differ.
_BEAT = "return redis.call('SET', KEYS[1], redis.call('TIME')[1])"


def _heartbeat_key() -> str:
    return redis_client.key("heartbeat", "celery")


def record_heartbeat() -> None:
    """Note that beat and a worker are alive. Raises :class:`redis.exceptions.RedisError`."""
    redis_client.client().eval(_BEAT, 1, _heartbeat_key())


def check_celery() -> Outcome:
    """Judge the age of the last heartbeat, which beat sends and a worker writes."""
    try:
        with _bounded_redis() as client:
            now, _microseconds = client.time()
            beat = client.get(_heartbeat_key())
    except redis.RedisError as exc:
        raise CheckFailed("Not known while Redis does not answer.", exc) from None
    if beat is None:
        raise CheckFailed("No heartbeat yet: beat or the workers do not run.")
    age = now - int(beat)
    if age > HEARTBEAT_MAX_AGE:
        raise CheckFailed(f"Last heartbeat {age} s ago: beat or the workers do not run.")
    return Outcome()


def standard_monitor() -> Monitor:
    """Return a monitor with the checks that every process has."""
    new = Monitor()
    new.register("database", check_database)
    new.register("redis", check_redis)
    new.register("zenzefi", check_zenzefi)
    new.register("celery", check_celery)
    return new


monitor = standard_monitor()


def register_check(name: str, check: Check) -> None:
    """Have ``/health`` and ``/health/detailed`` watch one more thing. ``check`` runs in a thread of its own.

    It should give up by itself within CHECK_SECONDS and may raise :class:`CheckFailed`.
    """
    monitor.register(name, check)


def why_not_ready() -> str:
    """Return why this process should get no requests, empty when it may.

    It may once PostgreSQL, migrated, and Redis have answered, until it drains or neither of them answers.
    """
    if draining.is_set():
        return "draining"
    report = monitor.report()
    if monitor.has_been_healthy("database", "redis"):
        return "database and redis away" if report.status == "unhealthy" else ""
    states = {name: report.checks[name].outcome.status for name in ("database", "redis")}
    if states["database"] == "degraded" and not migrated.is_set():
        return "waiting for migrations"
    return "waiting for " + " and ".join(name for name, state in states.items() if state != "healthy")


def as_json(result: Result, *, for_operators: bool) -> dict[str, Any]:
    """Return one check's result: status, latency in milliseconds, error; operators also see causes and URLs."""
    outcome = result.outcome
    body: dict[str, Any] = {
        "status": outcome.status,
        "latency_ms": result.latency_ms,
        "error": outcome.error or None,
    }
    if for_operators:
        if outcome.cause:
            body["error"] = f"{outcome.error} ({outcome.cause})"
        body["urls"] = list(outcome.urls)
    return body

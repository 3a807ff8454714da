"""Health says what is true, at once, whatever is broken."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone

from tests.upstream import RecordingUpstream, wait_until
from zenzefi.celery import app
from zenzefi.lib import health
from zenzefi.lib import redis as redis_client

ELSEWHERE: dict[str, Any] = {"REMOTE_ADDR": "203.0.113.9"}
#: Seconds: far more than health may take, far less than a frozen neighbour would.
SOON = 30


def ask(path: str, **extra: Any):
    """Return the answer, or fail when there is none soon."""

    def get():
        try:
            return Client().get(path, **extra)
        finally:
            connection.close()

    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(get).result(timeout=SOON)
    finally:
        pool.shutdown(wait=False)


def checks() -> dict[str, dict]:
    return ask("/health/detailed").json()["checks"]


def once(path: str, status: str, **extra: Any):
    """Return the first answer with that status. On a busy machine one may come before a check has ended."""
    answers: list[Any] = []

    def given() -> bool:
        answers[:] = [ask(path, **extra)]
        return answers[0].json()["status"] == status

    wait_until(given, seconds=SOON, what=f"{path} says {status}")
    return answers[0]


def once_check(name: str, status: str) -> dict[str, Any]:
    """Return the first result of a check with that status."""
    found: list[dict[str, Any]] = []

    def given() -> bool:
        found[:] = [checks()[name]]
        return found[0]["status"] == status

    wait_until(given, seconds=SOON, what=f"the {name} is {status}")
    return found[0]


def test_everything_works(everything_works):
    answer = once("/health", "healthy")

    assert answer.status_code == 200
    stamp = datetime.fromisoformat(answer.json()["timestamp"])
    assert timezone.now() - stamp < timedelta(minutes=1)
    assert answer["Cache-Control"] == "no-store"


def test_the_details_of_everything_working(everything_works):
    answer = once("/health/detailed", "healthy")

    assert answer.status_code == 200
    body = answer.json()
    assert set(body["checks"]) == {"database", "redis", "zenzefi", "celery"}
    for check in body["checks"].values():
        assert check["status"] == "healthy"
        assert check["latency_ms"] >= 0
        assert check["error"] is None


def test_addresses_are_for_this_machine(everything_works, upstream):
    assert once_check("zenzefi", "healthy")["urls"] == [upstream.url]

    answer = ask("/health/detailed", **ELSEWHERE)

    assert answer.status_code == 200
    assert all("urls" not in check for check in answer.json()["checks"].values())
    assert str(upstream.port) not in answer.text


@pytest.mark.django_db
@pytest.mark.parametrize(("is_staff", "shown"), [(True, True), (False, False)])
def test_addresses_are_for_staff(everything_works, is_staff, shown):
    user = get_user_model().objects.create_user(
        email="someone@example.com", username="someone", password="unimportant here"
    )
    user.is_staff = is_staff
    user.save()
    client = Client(**ELSEWHERE)
    client.force_login(user)
    # Nobody is known as staff before.
    once_check("database", "healthy")

    answer = client.get("/health/detailed")

    assert ("urls" in answer.json()["checks"]["redis"]) is shown


@pytest.mark.parametrize("credential", ["Bearer nonsense", "Bearer", "Basic eDp5", "\xff"])
def test_bad_credentials_do_not_spoil_health(everything_works, credential):
    answer = ask("/health/detailed", HTTP_AUTHORIZATION=credential, **ELSEWHERE)

    assert answer.status_code == 200
    assert "urls" not in answer.json()["checks"]["redis"]


def test_passwords_are_never_shown(redis_at, frozen):
    redis_at(frozen)

    def urls() -> list[str]:
        answer = ask("/health/detailed")
        assert "redis-secret" not in answer.text
        return answer.json()["checks"]["redis"]["urls"]

    wait_until(lambda: urls() == [f"redis://***@127.0.0.1:{frozen}/0"], seconds=SOON, what="the address is shown")


@pytest.mark.parametrize("path", ["/health", "/health/detailed", "/health/ready", "/health/live"])
def test_frozen_neighbours_do_not_freeze_health(path, frozen, database_at, redis_at, settings):
    database_at(frozen)
    redis_at(frozen)
    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{frozen}"]

    answer = ask(path)

    assert answer.status_code == (200 if path in {"/health/live", "/health"} else 503)
    assert answer.json()["status"] != "healthy"


def test_frozen_neighbours_are_known_as_such(frozen, database_at, redis_at):
    database_at(frozen)
    redis_at(frozen)

    body = once("/health/detailed", "unhealthy").json()

    for name in ("database", "redis", "celery"):
        assert body["checks"][name]["status"] == "unhealthy"
        assert body["checks"][name]["error"]
    # What the detailed report found out, the quick one says from then on.
    assert once("/health", "unhealthy").status_code == 503


def test_one_frozen_neighbour_costs_one_thread(frozen, database_at):
    # Those of an earlier test may not have given up yet.
    before = set(threading.enumerate())
    database_at(frozen)

    for _ in range(20):
        ask("/health")

    assert sum(thread.name == "health-database" for thread in set(threading.enumerate()) - before) <= 1


@pytest.mark.parametrize("moved", ["database", "redis"])
def test_either_of_the_two_suffices_to_serve(everything_works, frozen, database_at, redis_at, moved):
    {"database": database_at, "redis": redis_at}[moved](1)

    once_check(moved, "unhealthy")

    assert once("/health/detailed", "degraded").json()["checks"][moved]["status"] == "unhealthy"
    assert ask("/health").status_code == 200


def test_it_recovers(everything_works, database_at):
    database_at(1)
    once_check("database", "unhealthy")

    database_at(None)

    once_check("database", "healthy")


def test_details_for_strangers_name_no_cause(database_at):
    database_at(1)

    def error() -> str:
        return ask("/health/detailed", **ELSEWHERE).json()["checks"]["database"]["error"]

    # Or that there was no answer in time.
    wait_until(lambda: error() == "PostgreSQL does not answer.", seconds=SOON, what="the error without its cause")


# --- Zenzefi


def test_no_upstream_is_configured(settings):
    settings.ZENZEFI_TARGET_URLS = []

    assert checks()["zenzefi"] == {
        "status": "unhealthy",
        "latency_ms": pytest.approx(0, abs=1000),
        "error": "No upstream is configured. (ZENZEFI_TARGET_URL is not set.)",
        "urls": [],
    }


def test_an_upstream_that_is_gone(settings, upstream: RecordingUpstream):
    settings.ZENZEFI_TARGET_URLS = [upstream.url]
    upstream.stop()
    assert checks()["zenzefi"]["status"] == "unhealthy"


@pytest.mark.parametrize(("code", "status"), [(204, "healthy"), (401, "healthy"), (500, "healthy"), (503, "unhealthy")])
def test_an_upstream_counts_as_there_whatever_it_answers_itself(settings, upstream, code, status):
    settings.ZENZEFI_TARGET_URLS = [f"{upstream.url}/status/{code}"]

    assert once_check("zenzefi", status)["status"] == status


def test_one_of_two_upstreams_is_gone(settings, upstream):
    settings.ZENZEFI_TARGET_URLS = [*settings.ZENZEFI_TARGET_URLS, upstream.url]

    zenzefi = once_check("zenzefi", "degraded")

    assert zenzefi["error"].startswith("1 of 2 upstreams do not answer.")


def test_a_frozen_upstream_does_not_hold_the_others_up(settings, frozen):
    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{frozen}"] * 3

    assert checks()["zenzefi"]["status"] == "unhealthy"


# --- Celery


def test_without_a_heartbeat_the_workers_count_as_gone():
    assert checks()["celery"]["status"] == "unhealthy"
    assert ask("/health").json()["status"] == "degraded"


def test_the_scheduled_task_beats():
    app.finalize()
    entry = app.conf.beat_schedule["heartbeat"]
    assert entry["schedule"] == health.HEARTBEAT_SECONDS
    assert entry["task"] in app.tasks

    app.tasks[entry["task"]].apply(throw=True)

    assert once_check("celery", "healthy")["error"] is None


def test_an_old_heartbeat_counts_no_more():
    client = redis_client.client()
    seconds, _ = client.time()
    client.set(redis_client.key("heartbeat", "celery"), seconds - 60)

    age = re.search(r"(\d+) s ago", once_check("celery", "unhealthy")["error"])

    assert age is not None and 60 <= int(age[1]) < 60 + SOON


# --- Readiness


def test_ready_once_it_can_serve_and_as_long_as_anything_is_left(database_at, redis_at):
    database_at(1)
    assert once("/health/ready", "waiting for database").status_code == 503

    database_at(None)
    wait_until(lambda: ask("/health/ready").status_code == 200, seconds=SOON, what="ready")

    database_at(1)
    once_check("database", "unhealthy")
    assert once("/health/ready", "ready").status_code == 200

    redis_at(1)
    once_check("redis", "unhealthy")
    assert once("/health/ready", "database and redis away").status_code == 503


@pytest.mark.django_db(transaction=True)
def test_not_ready_before_the_database_is_migrated():
    recorder = MigrationRecorder(connection)
    [(app, name)] = MigrationLoader(None).graph.leaf_nodes("lib")
    recorder.record_unapplied(app, name)
    try:
        answer = once("/health/ready", "waiting for migrations")
        database = once_check("database", "degraded")
    finally:
        recorder.record_applied(app, name)

    assert answer.status_code == 503
    assert database["error"] == f"Migrations are missing. (lib.{name})"
    wait_until(lambda: ask("/health/ready").status_code == 200, seconds=SOON, what="ready")


def test_a_database_that_is_empty_is_not_ready(database_named):
    database_named("postgres")

    assert once("/health/ready", "waiting for migrations").status_code == 503


def test_any_probe_tells_that_the_process_could_serve(database_at):
    once("/health", "degraded")
    once_check("database", "healthy")
    once_check("redis", "healthy")

    database_at(1)
    once_check("database", "unhealthy")

    assert once("/health/ready", "ready").status_code == 200


def test_a_draining_process_is_alive_but_not_ready():
    wait_until(lambda: ask("/health/ready").status_code == 200, seconds=SOON, what="ready")

    health.draining.set()

    assert ask("/health/ready").status_code == 503
    assert ask("/health/ready").json()["status"] == "draining"
    assert ask("/health/live").status_code == 200


# --- More checks, and manners


def test_other_checks_join_in(everything_works):
    health.register_check("breaker", lambda: health.Outcome("degraded", "Half open."))

    assert once_check("breaker", "degraded")["error"] == "Half open."
    assert once("/health", "degraded").status_code == 200


def test_a_check_that_breaks_is_a_failed_check(everything_works):
    def broken() -> health.Outcome:
        raise ZeroDivisionError("one of ours")

    health.register_check("broken", broken)

    once_check("broken", "unhealthy")
    answer = ask("/health/detailed", **ELSEWHERE)

    assert answer.status_code == 200
    assert answer.json()["checks"]["broken"]["error"] == "The check failed."


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/health/detailed"])
def test_probes_are_read_only_and_always_json(path, client):
    refused = client.post(path)
    assert refused.status_code == 405
    assert refused.json()["code"] == "method_not_allowed"

    answer = ask(path, HTTP_ACCEPT="text/html")
    assert answer["Content-Type"] == "application/json"


def test_many_probes_at_once_run_each_check_once(everything_works, upstream):
    begin = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: Client().get("/health/detailed").status_code, range(64)))

    assert set(answers) == {200}
    assert len(upstream.requests) <= 1 + (time.monotonic() - begin) / health.FRESH_SECONDS

"""The suite's own PostgreSQL and Redis, what is left out when a tool is missing, and what was tried again."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
from django.conf import settings
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.database import django_db_setup  # noqa: F401 - a fixture, for every test
from tests.redis_server import forget_keys
from zenzefi.runtime import servers
from zenzefi.runtime.embedded import Lease

# The same examples every time, unless asked for new ones: a failure of the suite is the code's, not the day's.
# A busy machine draws examples slowly; that is no failure either.
_CALM: dict[str, Any] = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
hypothesis_settings.register_profile("ci", derandomize=True, **_CALM)
hypothesis_settings.register_profile("long", max_examples=2000, **_CALM)
hypothesis_settings.load_profile("ci")

LEASE = pytest.StashKey[Lease]()
TOOLS = {
    "caddy": ("caddy",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "nginx": ("nginx",),
    "promtool": ("promtool",),
    "wrk": ("wrk",),
}

#: The npm package of that name, where .ci/run puts it.
HTTP_CACHE_TESTS = settings.VAR_DIR / "http-cache-tests" / "node_modules" / "http-cache-tests"


def pytest_configure(config: pytest.Config) -> None:
    # Every xdist worker and its controller hold a share; the last to leave stops the servers.
    settings.VAR_DIR.mkdir(parents=True, exist_ok=True)
    config.stash[LEASE] = servers.ensure(lambda _: None, fsync=False)


def pytest_unconfigure(config: pytest.Config) -> None:
    if LEASE in config.stash:
        config.stash[LEASE].release()


@pytest.fixture(autouse=True)
def _no_keys_of_another_test() -> None:
    """Rate limits and caches of one test must not reach the next; only this worker's keys go."""
    forget_keys(settings.REDIS_PREFIX)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import GroupScheduling

    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker in _missing():
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=_reason(marker)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for marker in _missing():
        count = sum(_reason(marker) in reason for reason in skipped)
        if count:
            terminalreporter.write_line(f"Left out {count} tests marked {marker}: {_reason(marker)}.")
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.write_line(f"Tried again: {report.nodeid} ({report.when}), after:\n{report.longreprtext}")
    # What tests recorded for people, also in another process.
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in getattr(report, "user_properties", []):
                if name == "summary" and report.when == "call":
                    terminalreporter.write_line(text)


def _missing() -> list[str]:
    missing = [marker for marker, names in TOOLS.items() if not any(map(shutil.which, names))]
    if shutil.which("node") is None or not HTTP_CACHE_TESTS.exists():
        missing.append("http_cache_tests")
    return missing if os.geteuid() == 0 else [*missing, "root"]


def _reason(marker: str) -> str:
    other = {
        "root": "only root can become another user",
        "http_cache_tests": "Node or its package http-cache-tests is not installed",
    }
    return other.get(marker, f"{marker} is not on PATH")

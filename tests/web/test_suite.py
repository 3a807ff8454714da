"""The suite's own order: what must not run beside each other does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scheduling import GROUPS, group_of

ROOT = Path(__file__).resolve().parents[2]

_PLUGIN = """
from tests.scheduling import GroupScheduling


def pytest_xdist_make_scheduler(config, log):
    return GroupScheduling(config, log)
"""
_GROUPED = """
import os
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range(20))
def test_it(number):
    (Path(__file__).parent / os.environ["PYTEST_XDIST_WORKER"]).touch()
"""
#: Each waits until another worker has come to one of them.
_SHARED = """
import os
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range(20))
def test_it(number):
    folder = Path(__file__).parent
    (folder / os.environ["PYTEST_XDIST_WORKER"]).touch()
    end = time.monotonic() + 60
    while len(list(folder.glob("gw*"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/e2e/test_walk.py::test_it", "platforms"),
        ("tests/runtime/test_up.py::test_it[a]", "platforms"),
        ("tests/proxy/test_switch.py::test_it", "processes"),
        ("tests/proxy/test_edge.py::test_it", "tests/proxy/test_edge.py::test_it"),
        ("tests/web/test_e2e/test_it", "tests/web/test_e2e/test_it"),
    ],
)
def test_a_test_is_of_the_group_of_its_file(nodeid, group):
    assert group_of(nodeid) == group


@pytest.mark.parametrize("beginning", [beginning for beginnings in GROUPS.values() for beginning in beginnings])
def test_every_group_names_what_is_there(beginning):
    assert (ROOT / "tests" / beginning).exists()


def test_workers_share_all_but_the_groups(tmp_path):
    (tmp_path / "conftest.py").write_text(_PLUGIN)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for folder, tests in (("e2e", _GROUPED), ("wallet", _SHARED)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"test_{folder}.py").write_text(tests)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:randomly", "-p", "no:django", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    workers = {folder: len(list((tmp_path / folder).glob("gw*"))) for folder in ("e2e", "wallet")}
    assert workers == {"e2e": 1, "wallet": 2}

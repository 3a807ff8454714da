"""Pages in a real browser: they render, in both languages, and no script or resource of theirs fails."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.stack import Stack

pytestmark = [pytest.mark.chromium, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("e2e")]


def _chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None
    return subprocess.run(
        [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=10000",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )


def _console_errors(stderr: str) -> list[str]:
    """Return what pages wrote to the console as errors, refused resources among them."""
    return [line for line in stderr.splitlines() if "CONSOLE" in line and re.search(r"Refused|Failed|Error", line)]


@pytest.mark.parametrize(
    ("path", "text"),
    [("/", "Zenzefi"), ("/docs", "/api/v1/tokens/purchase"), ("/redoc", "/auth/register"), ("/admin/", "password")],
)
def test_a_page_renders(stack: Stack, tmp_path: Path, path: str, text: str):
    result = _chromium(tmp_path / "profile", "--dump-dom", f"{stack.url}{path}")

    assert text in result.stdout
    assert _console_errors(result.stderr) == []


def test_the_front_page_speaks_russian(stack: Stack, tmp_path: Path):
    result = _chromium(tmp_path / "profile", "--accept-lang=ru", "--lang=ru", "--dump-dom", f"{stack.url}/")

    assert 'lang="ru"' in result.stdout
    assert re.search(r"[а-я]{4}", result.stdout)

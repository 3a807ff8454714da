"""The README's walk, run as it stands there."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.e2e.stack import ROOT, Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _blocks() -> list[str]:
    """Return the README's shell blocks that talk to the running service."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "curl" in block]


@pytest.mark.parametrize("number", range(2))
def test_the_commands_of_the_readme_work_when_pasted(stack: Stack, number: int, tmp_path):
    script = _blocks()[number].replace("http://127.0.0.1:8000", stack.url)
    assert stack.url in script

    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={"PATH": stack.environment["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert result.returncode == 0, result.stdout + result.stderr

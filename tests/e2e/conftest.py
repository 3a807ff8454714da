"""One running platform for the end-to-end tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("platform") / "var") as platform:
        yield platform


@pytest.fixture
def fresh_stack(tmp_path: Path) -> Iterator[Stack]:
    """A platform of the test's own, for tests that kill parts of it."""
    with running(tmp_path / "var", WEB_WORKERS="2") as platform:
        yield platform

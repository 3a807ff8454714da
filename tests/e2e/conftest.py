"""One running platform for the end-to-end tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("platform") / "var") as platform:
        yield platform


@pytest.fixture(scope="module")
def battered_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform for tests that kill parts of it, one after the other; it has to recover each time."""
    with running(tmp_path_factory.mktemp("battered") / "var", WEB_WORKERS="2") as platform:
        yield platform

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.proxy.live import LiveGateway
from zenzefi.settings.env import RatePolicy


@pytest.fixture
def many_requests(settings: Any) -> None:
    """Limits that no test here reaches."""
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "auth": RatePolicy(100_000, 60), "api": RatePolicy(100_000, 60)}


@pytest.fixture
def server(transactional_db: None, settings: Any) -> Iterator[LiveGateway]:
    """Both planes under the server of production, on a real port."""
    settings.ZENZEFI_TARGET_URLS = ["http://127.0.0.1:9"]
    with LiveGateway().running() as running:
        yield running

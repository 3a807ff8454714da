from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth import get_user_model

from proxy.administration import set_token_limits
from tests.proxy.live import LiveGateway
from tests.upstream import RecordingUpstream
from tokens import secrets
from tokens.models import AccessToken
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client


@dataclass
class Issued:
    """A token with its secret."""

    secret: str
    token: AccessToken

    def reload(self) -> AccessToken:
        self.token.refresh_from_db()
        return self.token


@pytest.fixture(autouse=True)
def own_redis_keys(settings: Any) -> Iterator[None]:
    """Every test has keys of its own, so that nothing is left over from another."""
    prefix = settings.REDIS_PREFIX = f"{settings.REDIS_PREFIX}{uuid.uuid4().hex[:8]}:"
    # The suite's Redis, also where a test uses one of its own.
    client = redis_client.client()
    yield
    for key in client.scan_iter(f"{prefix}*", count=1000):
        client.delete(key)


@pytest.fixture
def issue(transactional_db: None) -> Callable[..., Issued]:
    """Makes a token, with its owner unless one is given. ``active_for``: activated now, for that long."""

    def make(
        *,
        scope: str = "full",
        owner: Any = None,
        superuser: bool = False,
        hours: int = 24,
        active_for: timedelta | None = None,
        **fields: Any,
    ) -> Issued:
        if owner is None:
            name = uuid.uuid4().hex[:12]
            create = get_user_model().objects.create_superuser if superuser else get_user_model().objects.create_user
            owner = create(f"{name}@example.com", name, "secret-enough")
        secret = secrets.generate()
        if active_for is not None:
            expires = clock.now() + active_for
            fields |= {"expires_at": expires, "activated_at": expires - timedelta(hours=hours)}
        token = AccessToken.objects.create(
            owner=owner,
            digest=secrets.digest(secret),
            last_four=secret[-4:],
            scope_id=scope,
            duration_hours=hours,
            list_price=Decimal("18.00"),
            paid=Decimal("18.00"),
            **fields,
        )
        return Issued(secret, token)

    return make


@pytest.fixture
def upstream(settings: Any) -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        yield server


@pytest.fixture
def live(upstream: RecordingUpstream, transactional_db: None) -> Iterator[LiveGateway]:
    """A running gateway before the recording upstream."""
    with LiveGateway().running() as server:
        yield server


@pytest.fixture
def allow() -> Callable[..., None]:
    """Sets limits of a token, and the networks it may be used from."""

    def change(issued: Issued, allowed_ips: list[str] | None = None, **limits: int | None) -> None:
        set_token_limits(token_id=issued.token.pk, limits=limits, allowed_ips=allowed_ips, actor=None, reason="a test")

    return change

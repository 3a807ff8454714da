from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from django.contrib.auth import get_user_model
from django.test import override_settings

from proxy.administration import set_token_limits
from tests.database import Reset
from tests.proxy.live import DEVICE, LiveGateway
from tests.proxy.mirror import Held, Mirror, Wire
from tests.proxy.moments import stay_in_one_day
from tests.redis_server import forget_keys
from tests.upstream import RecordingUpstream, wait_until
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
def own_redis_keys(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    """Every test has keys of its own, so that nothing is left over from another."""
    if "served" in request.fixturenames:
        # One gateway for the module; it knows its keys since its start.
        yield
        return
    prefix = settings.REDIS_PREFIX = f"{settings.REDIS_PREFIX}{uuid.uuid4().hex[:8]}:"
    # The suite's Redis, also where a test uses one of its own.
    client = redis_client.client()
    yield
    forget_keys(prefix, client)


def make_token(
    *,
    scope: str = "full",
    owner: Any = None,
    superuser: bool = False,
    hours: int = 24,
    active_for: timedelta | None = None,
    **fields: Any,
) -> Issued:
    """Make a token, with its owner unless one is given. ``active_for``: activated now, for that long."""
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


@pytest.fixture
def issue(transactional_db: None) -> Callable[..., Issued]:
    """Makes tokens; see :func:`make_token`."""
    return make_token


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
        if any(name.endswith(("_per_day", "_per_month")) for name in limits):
            stay_in_one_day()
        set_token_limits(token_id=issued.token.pk, limits=limits, allowed_ips=allowed_ips, actor=None, reason="a test")

    return change


@pytest.fixture
def answer_during(
    live: LiveGateway, settings: Any
) -> Iterator[Callable[[Issued, Callable[[], object]], httpx.Response]]:
    """Sends a request, acts while the upstream thinks about it, however long that takes, and returns the answer."""
    with Mirror() as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()

        def ask(issued: Issued, act: Callable[[], object], *, is_cut: bool = True) -> httpx.Response:
            held = server.answers["held"] = Held()
            with live.client(issued.secret) as client, ThreadPoolExecutor(1) as pool:
                client.get("status")
                waiting = pool.submit(client.get, "held")
                try:
                    wait_until(held.arrived.is_set, what="the request at the upstream")
                    act()
                    if is_cut:
                        # The answer is the gateway's own, and comes while the upstream still thinks.
                        wait_until(waiting.done, what="the end of the request")
                finally:
                    held.let_go.set()
                return waiting.result()

        yield ask


@dataclass
class Served:
    """One gateway for a whole module, before a :class:`Mirror`, with a token whose requests no limit counts."""

    live: LiveGateway
    mirror: Mirror
    issued: Issued

    @property
    def credentials(self) -> bytes:
        return f"X-Access-Token: {self.issued.secret}\r\nX-Device-ID: {DEVICE}\r\n".encode()

    def request(
        self, target: bytes, extra: bytes = b"", body: bytes = b"", *, method: bytes = b"GET", host: bytes = b"gw.test"
    ) -> bytes:
        """Return a request as bytes, with credentials. ``target`` stands below the prefix."""
        return b"%b /api/v1/proxy/%b HTTP/1.1\r\nHost: %b\r\n%b%b\r\n%b" % (
            *(method, target, host, self.credentials),
            *(extra, body),
        )

    def wire(self, *, timeout: float = 30) -> Wire:
        return Wire(self.live.port, timeout=timeout)

    @property
    def pooled(self) -> int:
        """Connections to the upstream that are in use or kept."""
        return self.in_use + sum(len(kept) for one in self._connectors for kept in one._conns.values())

    @property
    def in_use(self) -> int:
        return sum(len(one._acquired) for one in self._connectors)

    @property
    def _connectors(self) -> list[Any]:
        return [target.connector for target in self.live.gateway.upstream.targets]


@contextlib.contextmanager
def serve_module(blocker: Any, reset: Reset, mirror: Mirror, **overrides: Any) -> Iterator[Served]:
    """Serve until the end of the block. Its threads use the database while tests run that do not ask for one."""
    with blocker.unblock(), override_settings(ZENZEFI_TARGET_URLS=[mirror.url], **overrides):
        issued = make_token(superuser=True)
        try:
            with LiveGateway().running() as live:
                yield Served(live, mirror, issued)
        finally:
            reset()


@pytest.fixture(scope="module")
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        yield server


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    """Deadlines and the like that a module wants otherwise, to be overridden by it."""
    return {}


@pytest.fixture(scope="module")
def served(
    mirror: Mirror, gateway_settings: dict[str, Any], django_db_setup: Reset, django_db_blocker: Any
) -> Iterator[Served]:
    from django.conf import settings

    # Nothing but the requests themselves reaches the mirror, and whatever it does it is asked again.
    options = {**settings.GATEWAY, "eject_after": 10**9, "probe_interval": 3600.0, **gateway_settings}
    with serve_module(django_db_blocker, django_db_setup, mirror, GATEWAY=options) as running:
        yield running

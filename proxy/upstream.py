"""Connections to the Zenzefi servers.

aiohttp does what is hard to do well: the pool, name resolution and TLS. The request itself is written by us, so that
the bytes of its target and headers are the client's own and its framing is ours: aiohttp's request class would
decode, normalise and add headers. Answers are read by :mod:`proxy.upstream_protocol`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from functools import cached_property, partial
from time import monotonic
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp import ClientRequest, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from django.conf import settings
from yarl import URL

from proxy.upstream_protocol import UpstreamProtocol

logger = logging.getLogger(__name__)

#: Seconds for which a server that refused a connection is asked last.
REST_AFTER_FAILURE = 1.0


class UpstreamUnreachable(Exception):
    """No server accepted a connection; nothing of the request was sent."""


class Route(ClientRequest):
    """Address and TLS settings of a server, as aiohttp's pool wants them."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


@dataclass(slots=True)
class Target:
    """One configured server."""

    url: str
    #: Path below which everything is relayed, without a slash at its end.
    base: bytes
    #: ``Host`` as the server knows itself.
    host: bytes
    route: Route
    down_until: float = 0.0


class Upstream:
    """The pool of one worker. Must be made inside the event loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        conf = settings.GATEWAY
        self._tls = make_tls_context()
        self._connector = TCPConnector(
            limit=int(conf["max_upstream_connections"]), keepalive_timeout=30.0, ttl_dns_cache=10, loop=loop
        )
        self._connector._factory = partial(UpstreamProtocol, loop=loop)  # type: ignore[assignment]
        # A pool slot, name resolution, TCP and TLS, together.
        self._timeout = ClientTimeout(connect=conf["connect_timeout"], ceil_threshold=3600)
        self.targets = [self._target(url) for url in settings.ZENZEFI_TARGET_URLS]
        self._next = 0
        self._session: aiohttp.ClientSession | None = None

    def _target(self, url: str) -> Target:
        parts = urlsplit(url)
        return Target(
            url=url,
            base=parts.path.rstrip("/").encode("latin-1"),
            host=parts.netloc.rpartition("@")[2].encode("latin-1"),
            route=Route(
                "GET", URL(url), ssl=self._tls if parts.scheme == "https" else True, loop=asyncio.get_running_loop()
            ),
        )

    def in_order(self) -> list[Target]:
        """Return the servers in the order they should be tried: in turn, resting ones last."""
        targets = self.targets
        if len(targets) < 2:
            return targets
        self._next = (self._next + 1) % len(targets)
        turn = targets[self._next :] + targets[: self._next]
        now = monotonic()
        return sorted(turn, key=lambda target: target.down_until > now)

    async def connect(self) -> tuple[Target, Connection]:
        """Return a connection to the server whose turn it is; when that fails, to one other.

        Nothing was sent then, so this is the one retry that is right for any method.
        Raises :class:`UpstreamUnreachable`.
        """
        failure: Exception | None = None
        for target in self.in_order()[:2]:
            try:
                return target, await self._connector.connect(target.route, [], self._timeout)
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                target.down_until = monotonic() + REST_AFTER_FAILURE
                failure = exc
        raise UpstreamUnreachable(repr(failure)) from failure

    def session(self) -> aiohttp.ClientSession:
        """Return the session for WebSockets. It keeps no cookies, reads no environment, adds no headers."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector,
                connector_owner=False,
                cookie_jar=DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    def tls_of(self, target: Target) -> Any:
        return self._tls if target.url.startswith("https:") else True

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._connector.close()


def make_tls_context() -> ssl.SSLContext:
    """Return a verifying context: ``ZENZEFI_CA_FILE`` when the server's authority is private, else the system's."""
    cafile = settings.ZENZEFI_CA_FILE
    context = ssl.create_default_context(cafile=str(cafile) if cafile else None)
    context.set_alpn_protocols(["http/1.1"])
    return context


def protocol_of(connection: Connection) -> UpstreamProtocol:
    return cast(UpstreamProtocol, connection.protocol)


def abandon(connection: Connection) -> None:
    """Drop a connection at once, with whatever is still to be written to it."""
    if connection.protocol is not None:
        connection.protocol.abort()
    connection.close()

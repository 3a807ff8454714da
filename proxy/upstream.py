"""Connections to the Zenzefi servers.

aiohttp does what is hard to do well: the pool, name resolution, TLS, and parsing answers in C. The request itself
is written by us, so that the bytes of its target and headers are the client's own and its framing is ours:
aiohttp's request class would decode, normalise and add headers.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import ClientRequest, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader
from django.conf import settings
from yarl import URL

logger = logging.getLogger(__name__)

#: Bytes of an answer held per exchange while the client reads slower than the upstream sends.
READ_BUFFER = 2**18
#: Bytes of one header line of an answer, and lines.
MAX_HEADER_BYTES = 65_536
MAX_HEADER_LINES = 1000
#: Interim answers (1xx) passed over before the one that counts. A server that sends more says nothing else.
MAX_INTERIM = 100
#: Seconds for which a server that refused a connection is asked last.
REST_AFTER_FAILURE = 1.0


class UpstreamUnreachable(Exception):
    """No server accepted a connection; nothing of the request was sent."""


class UpstreamBroke(Exception):
    """The connection ended before an answer began."""


class UpstreamStale(UpstreamBroke):
    """A kept connection is of no use any more. Nothing of the request was sent."""


class UpstreamInvalid(Exception):
    """What came back is not an HTTP answer that can be relayed."""


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


def begin(connection: Connection, head: bytes, *, without_body: bool) -> ResponseHandler:
    """Send a request's head. ``without_body``: the answer has none whatever its headers say (HEAD).

    Raises :class:`UpstreamStale` when the pooled connection turns out to be closed, or when the server has spoken on
    it unasked: that would be taken for the answer.
    """
    protocol = connection.protocol
    if protocol is None or protocol.transport is None or protocol.transport.is_closing():
        raise UpstreamStale("closed while idle")
    if protocol.should_close:
        raise UpstreamStale("spoke while idle")
    protocol.set_response_params(
        skip_payload=without_body,
        read_until_eof=True,
        auto_decompress=False,
        read_bufsize=READ_BUFFER,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADER_LINES,
    )
    protocol.transport.write(head)
    return protocol


async def read_head(protocol: ResponseHandler) -> tuple[RawResponseMessage, StreamReader]:
    """Return the final answer's head and its body. Raises :class:`UpstreamBroke`, :class:`UpstreamInvalid`."""
    try:
        for _ in range(MAX_INTERIM + 1):
            message, payload = await protocol.read()
            if message.code >= 200:
                break
            if message.code == 101:
                raise UpstreamInvalid("switched protocols unasked")
        else:
            raise UpstreamInvalid("interim answers without end")
    except HttpProcessingError as exc:
        raise UpstreamInvalid(exc.message) from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise UpstreamBroke(repr(exc)) from exc
    if message.code > 599:
        raise UpstreamInvalid(f"status {message.code}")
    return message, payload


def keep(connection: Connection) -> None:
    """Give a connection back whose answer is complete. What arrives on it from now on is an answer to nothing."""
    if connection.protocol is not None:
        # Without a parser it is kept as it came, where begin() sees it, however little it is.
        connection.protocol._parser = None
    connection.release()


def abandon(connection: Connection) -> None:
    """Drop a connection at once, with whatever is still to be written to it."""
    if connection.protocol is not None:
        connection.protocol.abort()
    connection.close()

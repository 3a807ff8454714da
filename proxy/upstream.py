"""What is said over a connection to a Zenzefi server. Which server and connection, :mod:`proxy.pool` knows.

aiohttp does what is hard to do well: the pool, name resolution, TLS, and parsing answers in C. The request itself
is written by us, so that the bytes of its target and headers are the client's own and its framing is ours:
aiohttp's request class would decode, normalise and add headers.
"""

from __future__ import annotations

import logging
from functools import cached_property

import aiohttp
from aiohttp import ClientRequest
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

logger = logging.getLogger(__name__)

#: Bytes of an answer held per exchange while the client reads slower than the upstream sends.
READ_BUFFER = 2**18
#: Bytes of one header line of an answer, and lines.
MAX_HEADER_BYTES = 65_536
MAX_HEADER_LINES = 1000


class UpstreamUnreachable(Exception):
    """No server accepted a connection; nothing of the request was sent."""


class UpstreamBroke(Exception):
    """The connection ended before an answer began."""


class UpstreamInvalid(Exception):
    """What came back is not an HTTP answer that can be relayed."""


class Route(ClientRequest):
    """Address and TLS settings of a server, as aiohttp's pool wants them."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


def begin(connection: Connection, head: bytes, *, without_body: bool) -> ResponseHandler:
    """Send a request's head. ``without_body``: the answer has none whatever its headers say (HEAD).

    Raises :class:`UpstreamBroke` when the pooled connection turns out to be closed.
    """
    protocol = connection.protocol
    if protocol is None or protocol.transport is None or protocol.transport.is_closing():
        raise UpstreamBroke("closed while idle")
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
        while True:
            message, payload = await protocol.read()
            if message.code >= 200:
                break
            if message.code == 101:
                raise UpstreamInvalid("switched protocols unasked")
    except HttpProcessingError as exc:
        raise UpstreamInvalid(exc.message) from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise UpstreamBroke(repr(exc)) from exc
    if message.code > 599:
        raise UpstreamInvalid(f"status {message.code}")
    return message, payload


def abandon(connection: Connection) -> None:
    """Drop a connection at once, with whatever is still to be written to it."""
    if connection.protocol is not None:
        connection.protocol.abort()
    connection.close()

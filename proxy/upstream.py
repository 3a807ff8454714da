"""Connections to the Zenzefi servers. Which server and connection a request gets, :mod:`proxy.pool` knows.

aiohttp does what is hard to do well: the pool, name resolution and TLS. The request itself is written by us, so that
the bytes of its target and headers are the client's own and its framing is ours: aiohttp's request class would
decode, normalise and add headers. Answers are read by :mod:`proxy.upstream_protocol`.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

from aiohttp import ClientRequest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection

from proxy.upstream_protocol import UpstreamProtocol


class UpstreamUnreachable(Exception):
    """No server accepted a connection; nothing of the request was sent."""


class Route(ClientRequest):
    """Address and TLS settings of a server, as aiohttp's pool wants them."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


def protocol_of(connection: Connection) -> UpstreamProtocol:
    return cast(UpstreamProtocol, connection.protocol)


def abandon(connection: Connection) -> None:
    """Drop a connection at once, with whatever is still to be written to it."""
    if connection.protocol is not None:
        connection.protocol.abort()
    connection.close()

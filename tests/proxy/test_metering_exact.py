"""Metered bytes are transferred bytes, to the byte, also of clients that leave in the middle."""

from __future__ import annotations

import asyncio
import random

import pytest

from proxy import services
from tests.proxy.mirror import Peer
from tests.upstream import wait_until

pytestmark = pytest.mark.django_db

REQUESTS = 10_000
CLIENTS = 40


def size_of(number: int) -> int:
    return number * 7919 % 3000


async def part(peer: Peer) -> bool:
    """Announce ten times what is sent, then wait for the client to have had enough."""
    assert peer.seen is not None
    size = int(peer.seen.target.rpartition(b"/")[2])
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (10 * size + 1) + bytes(size))
    await peer.until_closed()
    return False


async def full(peer: Peer) -> None:
    assert peer.seen is not None
    size = int(peer.seen.target.rpartition(b"/")[2])
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_ten_thousand_requests_of_which_a_tenth_is_left(served, mirror):
    mirror.answers |= {"full": full, "part": part}
    leaves = set(random.Random(7).sample(range(REQUESTS), REQUESTS // 10))
    pending = iter(range(REQUESTS))
    bytes_in = bytes_out = 0

    async def client() -> None:
        nonlocal bytes_in, bytes_out
        writer = None
        for number in pending:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", served.live.port)
            size = size_of(number)
            left = number in leaves
            body = bytes(number % 5 * 100)
            target = b"%b/%d" % (b"part" if left else b"full", size)
            writer.write(served.request(target, b"Content-Length: %d\r\n" % len(body), body, method=b"POST"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(size)
            bytes_in += len(body)
            bytes_out += size
            if left:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    async def clients() -> None:
        async with asyncio.timeout(240):
            await asyncio.gather(*(client() for _ in range(CLIENTS)))

    asyncio.run(clients())
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchanges")

    def handed_over() -> bool:
        # A loaded machine may have taken Redis for away; the counts wait for it then.
        served.live.run(served.live.gateway.meter.flush())
        services.flush_meter_stream()
        session = served.issued.token.sessions.first()
        return session is not None and session.requests >= REQUESTS

    wait_until(handed_over, seconds=30, what="all counts")
    session = served.issued.token.sessions.get()
    assert (session.requests, session.bytes_in, session.bytes_out) == (REQUESTS, bytes_in, bytes_out)

"""Many requests at once from one thread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

import aiohttp

from tests.proxy.live import DEVICE


class Gateway(Protocol):
    """In this process or in one of its own."""

    @property
    def proxy(self) -> str: ...


def hammer(
    servers: Sequence[Gateway],
    secret: str,
    *,
    connections: int,
    seconds: float = 0.0,
    rounds: int = 1,
    path: str = "json",
    device: Callable[[int], str] = lambda number: DEVICE,
) -> Counter[int]:
    """Ask over this many connections, spread over the gateways; return how often each status came.

    Each connection asks ``rounds`` times, and on until ``seconds`` are over.
    """
    codes: Counter[int] = Counter()

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        url = f"{servers[number % len(servers)].proxy}/{path}"
        headers = {"X-Access-Token": secret, "X-Device-ID": device(number)}
        asked = 0
        while asked < rounds or monotonic() < ends:
            asked += 1
            async with session.get(url, headers=headers) as answer:
                await answer.read()
                codes[answer.status] += 1

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=connections)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(ask(session, number) for number in range(connections)))

    ends = monotonic() + seconds
    asyncio.run(run())
    return codes

"""What is open right now: deadlines, the client's leaving, revocation and expiry of every running exchange.

One look over all of them ten times a second takes the place of a handful of timers for each: a short exchange
comes and goes between two looks and costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from django.conf import settings

from proxy.limits import NONE
from proxy.pacing import Pace

if TYPE_CHECKING:
    from proxy.pool import Target

#: Seconds between two looks.
TICK = 0.1

UPLOADING, WAITING, STREAMING = range(3)

#: Reasons that end an exchange, besides codes of :mod:`proxy.answers`.
CLIENT_GONE = "client_gone"
IDLE = "idle"
BROKEN_OFF = "broken_off"


class Exchange:
    """One proxied request or WebSocket from its admission to its end."""

    # Defaults stand in the class: most of them stay, and setting them would cost every request.
    token_id = user_id = generation = user_agent = b""
    address = ""
    phase = WAITING
    #: Milliseconds since the epoch; 0 before activation.
    expires = 0
    bytes_in = bytes_out = reported_in = reported_out = 0
    #: The upstream has begun to answer, so the request counts.
    reached = False
    counted = False
    ended = False
    #: The last of the answer is on its way: the client's leaving ends nothing early any more.
    finishing = False
    has_body = awaiting_client = is_event_stream = is_websocket = False
    reason: str | None = None
    watcher: asyncio.Task[None] | None = None
    limits = NONE
    #: Counts against the token's requests at once; empty where nothing limits them.
    lease = b""
    #: What slows the streams of this token down, if anything does.
    pace: Pace | None = None
    #: The server it was given to, and the last one that failed it.
    target: Target | None = None
    failed_target: Target | None = None
    #: What was decided on: the token's scope, the raw path below the prefix, the method.
    scope = below = b""
    method = ""

    def __init__(self, digest: str, device: bytes, task: asyncio.Task[Any], receive: Any) -> None:
        self.digest = digest
        self.device = device
        self.task = task
        self.receive = receive
        #: When it was decided on.
        self.started = self.progress = monotonic()

    def leave_target(self) -> None:
        """It goes to another server, or has ended."""
        target, self.target = self.target, None
        if target is not None:
            if not self.ended:
                self.failed_target = target
            target.release(self)

    def interrupt(self, reason: str) -> None:
        """End the exchange from outside, once. Its task finds the reason and answers or hangs up."""
        if not self.ended and self.reason is None:
            self.reason = reason
            self.task.cancel()

    def watch(self) -> None:
        """Notice the client's leaving. Only for an exchange whose body nobody else is reading."""
        if self.watcher is None and not self.ended:
            self.watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not self.finishing:
            self.interrupt(CLIENT_GONE)

    def end(self) -> None:
        self.ended = True
        self.leave_target()
        if self.watcher is not None:
            self.watcher.cancel()


class Registry:
    """The running exchanges of one worker."""

    def __init__(self) -> None:
        conf = settings.GATEWAY
        self._first_byte = conf["first_byte_timeout"]
        self._idle = conf["idle_timeout"]
        self._total = conf["total_timeout"]
        self._open: set[Exchange] = set()
        self._empty = asyncio.Event()
        #: Called once for an exchange whose token has come to its end.
        self.on_expiry: Callable[[Exchange], None] = lambda exchange: exchange.interrupt("token_expired")

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(list(self._open))

    def add(self, exchange: Exchange) -> None:
        self._open.add(exchange)

    def discard(self, exchange: Exchange) -> None:
        self._open.discard(exchange)
        if not self._open:
            self._empty.set()

    async def wait_empty(self, seconds: float) -> None:
        """Wait until nothing runs any more, at most this long."""
        if not self._open:
            return
        self._empty.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            pass

    def count_of(self, token_id: bytes) -> int:
        """Return how many exchanges of a token run. Looks at all of them."""
        return sum(exchange.token_id == token_id for exchange in self._open)

    def of_digest(self, digest: str) -> list[Exchange]:
        return [exchange for exchange in self._open if exchange.digest == digest]

    def tick(self) -> None:
        """Apply the deadlines and look after clients that may have left."""
        now, wall = monotonic(), time() * 1000
        for exchange in list(self._open):
            if exchange.ended or exchange.reason is not None:
                continue
            if exchange.expires and wall >= exchange.expires:
                # A successor may have been bought that goes on from here.
                exchange.expires = 0
                self.on_expiry(exchange)
                continue
            if exchange.is_websocket:
                # Both sides are kept honest by pings; silence is allowed.
                continue
            waited = now - exchange.progress
            if exchange.phase == STREAMING:
                if waited > self._idle:
                    exchange.interrupt(IDLE)
            elif exchange.phase == WAITING:
                if waited > self._first_byte:
                    exchange.interrupt("upstream_timeout")
            elif waited > self._idle:
                exchange.interrupt("request_timeout" if exchange.awaiting_client else "upstream_timeout")
            if now - exchange.started > self._total and not exchange.is_event_stream:
                exchange.interrupt("total_timeout")
            if not exchange.has_body:
                exchange.watch()

"""The gateway's own connection to Redis: calls of one event-loop tick leave as one write, answers come in order.

A pooled client takes a connection and two system calls a request; here any number of requests share one
connection and one system call. While Redis does not answer the link is *down* and says so at once, so that
nothing queues behind a dead neighbour; a background task connects again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any, cast

import hiredis
from redis.connection import parse_url

logger = logging.getLogger(__name__)

_LUA = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^ *-- include (\w+)\n", re.MULTILINE)
_INCOMPLETE = object()


class RedisAway(Exception):
    """Redis does not answer, or answered that it cannot serve now."""


class Script:
    """A Lua script of this package, with its hash. A line ``-- include NAME`` stands for another file of the folder."""

    __slots__ = ("sha", "source")

    def __init__(self, name: str) -> None:
        source = (_LUA / f"{name}.lua").read_text()
        self.source = _INCLUDE.sub(lambda line: (_LUA / f"{line[1]}.lua").read_text(), source).encode()
        self.sha: str = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class _Wire(asyncio.Protocol):
    """One connection. Replies belong to the calls in order; what nobody waits for goes to ``on_push``."""

    def __init__(self, on_lost: Callable[[_Wire], None], on_push: Callable[[Any], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._on_lost = on_lost
        self._on_push = on_push
        self._outgoing: list[bytes] = []
        #: Calls that were written and not answered yet; those in ``_outgoing`` are pending too.
        self._unanswered = 0
        self.pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        #: A call that was found to wait too long at the last look.
        self.overdue: asyncio.Future[Any] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def call(self, packed: bytes) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.transport is None:
            future.set_exception(RedisAway("the connection is closed"))
            return future
        # While a batch is under way the next one gathers, and leaves when the last answer is in: an idle link waits
        # for nothing, a busy one makes fewer and larger batches, which costs both ends fewer system calls.
        if not self._outgoing and not self._unanswered:
            self._loop.call_soon(self._flush)
        self._outgoing.append(packed)
        self.pending.append((future, monotonic()))
        return future

    def _flush(self) -> None:
        if self.transport is not None:
            self._unanswered += len(self._outgoing)
            self.transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self.pending
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not _INCOMPLETE:
                if self._on_push is not None and type(reply) is list and reply and reply[0] == b"message":
                    self._on_push(reply)
                elif pending:
                    future, _ = pending.popleft()
                    self._unanswered -= 1
                    if not future.done():
                        if isinstance(reply, hiredis.ReplyError):
                            future.set_exception(reply)
                        else:
                            future.set_result(reply)
                reply = reader.gets()
            if self._outgoing and not self._unanswered:
                self._loop.call_soon(self._flush)
        except hiredis.ProtocolError as exc:
            self.fail(RedisAway(f"not the Redis protocol: {exc}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(RedisAway(f"the connection was lost: {exc or 'closed by Redis'}"))

    def fail(self, error: RedisAway) -> None:
        """Give up the connection: every waiting call ends with the error."""
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()
        pending, self.pending = self.pending, deque()
        for future, _ in pending:
            if not future.done():
                future.set_exception(error)
                # A caller that went away leaves nobody to look at it.
                future.exception()
        if transport is not None:
            self._on_lost(self)


class RedisLink:
    """A connection that is kept up in the background. ``timeout`` (seconds) bounds every call."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        scripts: tuple[Script, ...] = (),
        subscribe: str | None = None,
        on_message: Callable[[bytes], None] | None = None,
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._scripts = scripts
        self._subscribe = subscribe
        self._on_message = on_message
        self._wire: _Wire | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        #: False while calls would only wait for nothing.
        self.up = False

    async def start(self) -> None:
        """Try to connect once, bounded, then keep on in the background whatever came of it."""
        await self._try_connect()
        self._task = asyncio.get_running_loop().create_task(self._keep_up(), name="gateway-redis-link")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.up = False
        if self._wire is not None:
            self._wire.fail(RedisAway("the gateway stops"))

    def call(self, *command: Any) -> Awaitable[Any]:
        """Send one command. Raises :class:`RedisAway` or, for an error of the command, ``hiredis.ReplyError``."""
        return self.send(hiredis.pack_command(command))

    def send(self, packed: bytes) -> Awaitable[Any]:
        if self._wire is None:
            raise RedisAway("not connected")
        return self._wire.call(packed)

    def tell(self, *command: Any) -> None:
        """Send one command whose answer nobody waits for; lost without a word while Redis is away."""
        wire = self._wire
        if wire is not None:
            wire.call(hiredis.pack_command(command)).add_done_callback(_looked_at)

    async def run(self, script: Script, keys: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
        """Run a script. Raises :class:`RedisAway` when Redis cannot serve it now, whatever the reason."""
        packed = hiredis.pack_command((b"EVALSHA", script.sha, len(keys), *keys, *arguments))
        wire = self._wire
        if wire is None:
            raise RedisAway("not connected")
        try:
            return await wire.call(packed)
        except hiredis.ReplyError as exc:
            if not str(exc).startswith("NOSCRIPT"):
                # LOADING, READONLY, OOM, MISCONF, BUSY: it is there, but not for us.
                raise RedisAway(str(exc)) from exc
        try:
            for other in self._scripts:
                await self.call(b"SCRIPT", b"LOAD", other.source)
            return await self.send(packed)
        except hiredis.ReplyError as exc:
            raise RedisAway(str(exc)) from exc

    def check(self) -> None:
        """Give up a connection whose oldest call has waited too long. To be called a few times a second.

        One look for all calls instead of a timer each; a stopped or frozen Redis ends them together.
        """
        wire = self._wire
        if wire is None:
            return
        overdue = None
        if wire.pending and monotonic() - wire.pending[0][1] > self._timeout:
            overdue = wire.pending[0][0]
            if overdue is wire.overdue:
                wire.fail(RedisAway(f"no answer within {self._timeout:g} s"))
                return
        # Where this process was held up itself, the answer is there and will be read before the next look.
        wire.overdue = overdue

    def _on_lost(self, wire: _Wire) -> None:
        if wire is self._wire:
            if self.up:
                logger.warning("Redis is away; deciding from PostgreSQL until it is back")
            self.up = False
            self._wire = None
            self._lost.set()

    async def _keep_up(self) -> None:
        while True:
            if self.up:
                # A frozen Redis is noticed even when nobody asks.
                try:
                    await asyncio.wait_for(self._lost.wait(), 1.0)
                except TimeoutError:
                    if self._wire is not None and not self._wire.pending:
                        self._wire.call(hiredis.pack_command((b"PING",)))
                continue
            await asyncio.sleep(0.2)
            await self._try_connect()

    async def _try_connect(self) -> None:
        self._lost.clear()
        try:
            async with asyncio.timeout(self._timeout):
                await self._connect()
        except (OSError, RedisAway, hiredis.HiredisError, TimeoutError, ssl.SSLError) as exc:
            logger.debug("Redis connection failed: %s", exc)
            wire, self._wire = self._wire, None
            if wire is not None:
                wire.fail(RedisAway("the connection could not be set up"))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        options = parse_url(self._url)

        def make() -> _Wire:
            return _Wire(self._on_lost, self._push if self._subscribe else None)

        if "path" in options:
            _, wire = await loop.create_unix_connection(make, options["path"])
        else:
            secure = None
            if self._url.startswith("rediss:"):
                secure = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
            _, wire = await loop.create_connection(
                make, options.get("host", "localhost"), options.get("port", 6379), ssl=secure
            )
        self._wire = wire
        if password := options.get("password"):
            user = options.get("username")
            await self.call(b"AUTH", *((user, password) if user else (password,)))
        if database := options.get("db"):
            await self.call(b"SELECT", int(database))
        for script in self._scripts:
            await self.call(b"SCRIPT", b"LOAD", script.source)
        await self.call(b"PING")
        if self._subscribe:
            await self.call(b"SUBSCRIBE", self._subscribe)
        self.up = True
        logger.info("Redis is connected")

    def _push(self, reply: list[Any]) -> None:
        if self._on_message is not None:
            self._on_message(reply[2])


def _looked_at(future: asyncio.Future[Any]) -> None:
    """Take note of an answer that nobody waits for; the loop would complain about its exception otherwise."""
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.debug("Redis did not take a message: %s", error)

"""What a carrier in front moved, told by its access log over a local syslog socket (RFC 3164), into the metering.

One datagram for each request that was carried, when it is over. They are received by a process of its own, which does
nothing else and so is always there to read: what finds the socket's buffer full is lost, and nobody repeats it. That it
happened shows where the metrics of what was handed over and of what was logged drift apart.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import socket
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from prometheus_client import Counter

from proxy import keys
from proxy.database import Database
from proxy.limits import day_number, month_number
from proxy.metering import Meter
from proxy.redis_link import RedisLink
from proxy.streams import Registry
from proxy.validation import SCRIPTS
from zenzefi.lib import clock

logger = logging.getLogger(__name__)

#: Bytes asked for as the socket's buffer: about ten thousand lines. The kernel may give less (net.core.rmem_max).
RECEIVE_BUFFER = 8 * 2**20
#: More than the longest line: what a client says of itself is bounded before it is handed over.
DATAGRAM_BYTES = 16_384
#: Lines read at one go before other work gets its turn.
_AT_ONCE = 1000
#: Seconds between two looks while lines keep coming: one wake-up for many instead of one for each. The smallest buffer
#: that a kernel gives holds as many as come meanwhile.
_NAP_SECONDS = 0.002
#: Linux's number of it, which the library does not name.
_SO_RCVBUFFORCE = 33
_ESCAPE = re.compile(rb"\\x([0-9A-F]{2})")
# As ``log_format zenzefi_carried`` has it; in a value nginx writes a quote as \\x22.
_ID = rb"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_LINE = re.compile(
    rb"<\d{1,3}>[^\n:]{1,16}:\d\d:\d\d (z[0-9a-f]{31}): "
    # Ids and device are texts that PostgreSQL takes as they are.
    + rb'"%b" "%b" "([0-9a-f.:]{2,45}|-) ([01])" "([\x21\x23-\x7e]{8,1020})" ' % (_ID, _ID)
    + rb'"([^"]*)" "([^"]*)" "(\d{1,18})" "(\d{1,12})\.(\d{3})" "([^"]*)"\n?'
)

LINES = Counter("zenzefi_proxy_edge_lines_total", "Lines of carriers' logs by what became of them", ["outcome"])


class MalformedLine(Exception):
    """A datagram is not a line of a carrier."""


@dataclass(slots=True)
class Carried:
    """One request that a carrier took to a server."""

    token_id: bytes
    user_id: bytes
    device: bytes
    #: The client's, as the decision knew it.
    address: str
    user_agent: bytes
    #: The server has begun to answer.
    reached: bool
    #: Bytes of the answer's body that the client was sent.
    bytes_out: int
    #: When it was over, milliseconds since the epoch.
    at: int
    #: Counted against a quota of requests, to which it is given back where no server answered.
    counted: bool


def tag(secret: str) -> str:
    """Return the syslog tag by which lines prove to be a carrier's: anybody on the machine can send datagrams.

    RFC 3164 §5.3 allows it 32 letters and digits.
    """
    return "z" + hmac.digest(secret.encode(), b"edge log", hashlib.sha256).hex()[:31]


def parse(datagram: bytes, tag_: bytes) -> Carried:
    """Read one line. Raises :class:`MalformedLine`."""
    found = _LINE.fullmatch(datagram)
    if found is None:
        raise MalformedLine("not a line of a carrier")
    proof, token, user, address, counted, device, first_byte, received, sent, seconds, thousandths, agent = (
        found.groups()
    )
    if not hmac.compare_digest(proof, tag_):
        raise MalformedLine("not from a carrier of ours")
    # Of a request that went through several locations these are lists; the last is the carrier's own.
    reached = not first_byte.endswith(b"-")
    bytes_out = 0
    if reached:
        bytes_out = int(sent)
        length = received[received.rfind(b" ") + 1 :]
        # What the framing of chunks adds on our side is nobody's traffic.
        if length.isdigit() and int(length) < bytes_out:
            bytes_out = int(length)
    return Carried(
        token,
        user,
        device if b"\\" not in device else _plain(device),
        address.decode("ascii") if address != b"-" else "",
        b"" if agent == b"-" else _plain(agent) if b"\\" in agent else agent,
        reached,
        bytes_out,
        int(seconds) * 1000 + int(thousandths),
        counted == b"1",
    )


def _plain(value: bytes) -> bytes:
    """Undo what nginx's log escapes."""
    return _ESCAPE.sub(lambda escaped: bytes([int(escaped[1], 16)]), value)


class EdgeLog:
    """Receives carriers' lines and meters them. Must be started inside the event loop."""

    def __init__(self) -> None:
        self._tag = tag(settings.EDGE_SECRET).encode()
        self._link = RedisLink(settings.REDIS_URL, timeout=settings.REDIS_TIMEOUT, scripts=SCRIPTS)
        self._database = Database(threads=1, timeout=settings.DATABASE_TIMEOUT + 1, backlog=16)
        self.meter = Meter(self._link, self._database, Registry())
        self._prefix = keys.prefix().encode()
        self._given_back: dict[bytes, int] = {}
        self._seen = {"counted": 0, "unanswered": 0, "malformed": 0}
        self._socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._nap: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bind and begin. Raises :class:`OSError` when the address cannot be had."""
        self._socket = _bind(settings.EDGE_LOG)
        await self._link.start()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket.fileno(), self._on_readable)
        self._tasks = [
            loop.create_task(self._every_second(), name="edge-log-second"),
            loop.create_task(self._watch_link(), name="edge-log-link"),
        ]

    async def stop(self) -> None:
        """Read what has come and hand over every count."""
        assert self._socket is not None
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if self._nap is not None:
            self._nap.cancel()
        # Bounded: a carrier that stays may go on sending.
        for _ in range(100):
            if not self._read():
                break
        self._socket.close()
        _unbind(settings.EDGE_LOG)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._flush()
        await self.meter.drain()
        await self._link.stop()
        self._database.stop()

    @property
    def address(self) -> Any:
        """The socket's own name, as the kernel has it."""
        assert self._socket is not None
        return self._socket.getsockname()

    def _on_readable(self) -> None:
        assert self._socket is not None
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._look()

    def _look(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        if self._read():
            self._nap = loop.call_later(_NAP_SECONDS, self._look)
        else:
            self._nap = None
            loop.add_reader(self._socket.fileno(), self._on_readable)

    def _read(self) -> int:
        """Meter what has come, and return how many lines that was; at most so many at once."""
        receive = self._socket.recv  # type: ignore[union-attr]
        for number in range(_AT_ONCE):
            try:
                datagram = receive(DATAGRAM_BYTES)
            except BlockingIOError:
                return number
            except OSError as exc:
                logger.warning("The carrier's log could not be read: %s", exc)
                return number
            self.take(datagram)
        return _AT_ONCE

    def take(self, datagram: bytes) -> None:
        """Meter one line; what is none is counted and forgotten."""
        try:
            line = parse(datagram, self._tag)
        except MalformedLine as exc:
            self._seen["malformed"] += 1
            # Not the line itself: it has addresses and devices in it, or is anybody's.
            logger.debug("A datagram is not a carrier's line: %s", exc)
            return
        if not line.reached:
            self._seen["unanswered"] += 1
            if line.counted:
                self._given_back[line.token_id] = self._given_back.get(line.token_id, 0) + 1
            return
        self._seen["counted"] += 1
        self.meter.count(
            line.token_id,
            line.device,
            line.user_id,
            line.address,
            line.user_agent,
            1,
            0,
            line.bytes_out,
            line.at,
        )

    async def _watch_link(self) -> None:
        """Apart from what waits for Redis: of one that falls silent nobody else would find out."""
        while True:
            await asyncio.sleep(0.1)
            self._link.check()

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                self._flush()
                await self.meter.flush()
            except Exception:
                # This loop must outlive any surprise: without it nothing is metered.
                logger.exception("The carrier's log could not be metered")

    def _flush(self) -> None:
        for outcome, count in self._seen.items():
            LINES.labels(outcome).inc(count)
            self._seen[outcome] = 0
        if not self._link.up:
            return
        now = clock.now()
        given_back, self._given_back = self._given_back, {}
        for token_id, count in given_back.items():
            self._link.tell(b"HINCRBY", b"%bday:%b:%d" % (self._prefix, token_id, day_number(now)), b"admitted", -count)
            self._link.tell(
                b"HINCRBY", b"%bmonth:%b:%d" % (self._prefix, token_id, month_number(now)), b"admitted", -count
            )


def _bind(address: str) -> socket.socket:
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode):
                path.unlink()
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name: Any = str(path)
    else:
        host, _, port = address.rpartition(":")
        family, kind, protocol, _, name = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )[0]
        peer = socket.socket(family, kind, protocol)
    try:
        peer.bind(name)
    except OSError:
        peer.close()
        raise
    peer.setblocking(False)
    _widen(peer)
    return peer


def _unbind(address: str) -> None:
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)


def _widen(peer: socket.socket) -> None:
    """Ask for a buffer that a busy moment does not fill; root may have more than others."""
    if sys.platform == "linux":
        with suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
            return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)

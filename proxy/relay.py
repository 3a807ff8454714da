"""One request's way to a server and back: connect, send head and body as they come, start the token's clock when the
answer begins, relay the answer as it comes.

Nothing is buffered whole in either direction, and nothing is asked of the client before it is admitted: the first
``receive()`` is what sends ``100 Continue``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_writer import StreamWriter

from proxy import answers, timing, upstream
from proxy.decisions import Decision
from proxy.exceptions import MalformedAnswer, Refused
from proxy.headers import Incoming, Outgoing, read_answer
from proxy.pacing import Pace
from proxy.pool import Target
from proxy.streams import BROKEN_OFF, CLIENT_GONE, IDLE, STREAMING, UPLOADING, WAITING, Exchange
from proxy.upstream_protocol import UpstreamBroke, UpstreamInvalid, UpstreamProtocol, UpstreamStale
from zenzefi.lib.asgi import END, Receive, Scope, Send
from zenzefi.lib.streaming import BODY_FOLLOWS, INTERIM

if TYPE_CHECKING:
    from proxy.gateway import Gateway

logger = logging.getLogger(__name__)

#: RFC 9110 §9.2.2. Only these may be sent again after a connection broke without an answer.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class _BrokenOff(Exception):
    """The upstream ended in the middle of an answer."""


class Relay(timing.Course):
    """One admitted HTTP request on its way to a server and back."""

    __slots__ = (
        "below",
        "connection",
        "decision",
        "exchange",
        "forwarding",
        "found",
        "gateway",
        "head_sent",
        "method",
        "receive",
        "request_id",
        "scope",
        "send",
        "upload",
        "upload_done",
    )

    def __init__(
        self,
        gateway: Gateway,
        scope: Scope,
        receive: Receive,
        send: Send,
        found: Incoming,
        below: bytes,
        decision: Decision,
        exchange: Exchange,
        forwarding: bytes,
        request_id: bytes,
        arrived: float,
    ) -> None:
        # As in the class above, which costs a look-up more to be asked.
        self.arrived = arrived
        self.sent = self.first_byte = self.overhead = 0.0
        self.status = 0
        self.refusal = ""
        self.gateway = gateway
        self.scope = scope
        self.method: str = scope["method"]
        self.receive = receive
        self.send = send
        self.found = found
        self.below = below
        self.decision = decision
        self.exchange = exchange
        self.forwarding = forwarding
        self.request_id = request_id
        self.connection: Connection | None = None
        self.upload: asyncio.Task[None] | None = None
        exchange.has_body = has_body = found.has_body
        self.upload_done = not has_body
        self.head_sent = False

    async def run(self) -> str:
        """Relay, and return how it ended: a status class, a code of ours, or why it was cut."""
        try:
            return await self._relay()
        except Refused as refusal:
            return await self._answer(refusal)
        except _BrokenOff:
            return BROKEN_OFF
        except Exception:
            logger.exception("A request could not be relayed")
            return await self._answer(Refused("internal_error"))
        except asyncio.CancelledError:
            # Without a reason of ours it is the server, which cuts its tasks when its grace period is over.
            reason = self.exchange.reason or "shutting_down"
            self.exchange.task.uncancel()
            if reason == "upstream_timeout" and self.exchange.phase == WAITING and self.connection is not None:
                self.gateway.upstream.failed(self.exchange, "did not answer in time")
            if reason == CLIENT_GONE or self.head_sent:
                return reason
            return await self._answer(Refused("upstream_timeout" if reason == IDLE else reason))
        finally:
            if self.upload is not None:
                self.upload.cancel()
            connection, self.connection = self.connection, None
            if connection is not None:
                upstream.abandon(connection)

    async def _answer(self, refusal: Refused) -> str:
        """Answer by ourselves, unless the upstream's answer has begun: then only hanging up is honest."""
        exchange = self.exchange
        if not self.head_sent and exchange.reason != CLIENT_GONE:
            exchange.finishing = True
            self.status, self.refusal = answers.ANSWERS[refusal.code].status, refusal.code
            await self.gateway.refuse(
                self.send, refusal, self.found, self.request_id, self.method, self.arrived, exchange.started
            )
        return refusal.code

    async def _relay(self) -> str:
        exchange = self.exchange
        gateway = self.gateway
        protocol = await self._reach_upstream()
        assert exchange.target is not None
        cors = gateway.cors.headers(self.found.origin) if self.found.origin else ()
        try:
            answer = read_answer(protocol.headers, exchange.target.rewriter, drop_cors=bool(cors))
        except MalformedAnswer as exc:
            logger.warning("Upstream %s sent an invalid answer: %s", exchange.target.url, exc)
            gateway.upstream.failed(exchange, f"sent an invalid answer: {exc}")
            raise Refused("upstream_invalid") from None
        self.first_byte = exchange.progress = monotonic()
        exchange.phase = STREAMING
        exchange.reached = True
        gateway.upstream.answered(exchange, protocol.status)

        decision = self.decision
        if not decision.activated:
            if not await gateway.activate(exchange.digest, decision):
                raise Refused("token_revoked")
            exchange.expires = decision.expires

        status = protocol.status
        exchange.is_event_stream = answer.is_event_stream
        without_body = self.method == "HEAD" or status in (204, 304)
        headers = self._framed(answer, status)
        headers.append((b"x-request-id", self.request_id))
        if decision.remaining >= 0:
            headers.extend(gateway.limit_headers(decision))
        headers.extend(cors)
        if self.found.expects_continue and not self.upload_done and exchange.bytes_in == 0:
            headers.append((b"connection", b"close"))
        headers.append(timing.of_answer(self, exchange.started))

        send = self.send
        self.head_sent = True
        self.status = status
        chunk = b"" if without_body else protocol.read_body_nowait()
        start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
        # Our server writes the head together with a body that is there already.
        if without_body or ((chunk or protocol.is_complete) and exchange.pace is None):
            start[BODY_FOLLOWS] = True
        await send(start)
        if without_body:
            exchange.finishing = True
            await send(END)
        else:
            await self._stream(protocol, chunk)
        self._release()
        return f"{status // 100}xx"

    def _framed(self, answer: Outgoing, status: int) -> list[tuple[bytes, bytes]]:
        """Return the headers with the length where there is one to keep.

        A body with a Content-Encoding goes out chunked: deployed clients decode it and cut the result at the
        encoded length otherwise.
        """
        length = answer.length
        known = length is not None and length.isdigit() and not answer.chunked and status not in (204, 304)
        if known and (self.method == "HEAD" or not answer.encoded):
            answer.headers.append((b"content-length", length or b""))
        return answer.headers

    async def _reach_upstream(self) -> UpstreamProtocol:
        """Connect, send, and return the connection once the answer's head has come. Raises :class:`Refused`."""
        pool = self.gateway.upstream
        exchange = self.exchange
        safe = self.upload_done and self.method in IDEMPOTENT
        retries = 1 if safe else 0
        broken: Target | None = None
        while True:
            try:
                target, connection = await pool.connect(exchange, self.decision.scope, safe=safe, avoid=broken)
            except upstream.UpstreamUnreachable as exc:
                logger.warning("No upstream: %s", exc)
                late = isinstance(exc.__cause__, TimeoutError)
                raise Refused("connect_timeout" if late else "upstream_unreachable") from None
            self.connection = connection
            try:
                protocol = upstream.protocol_of(connection)
                protocol.begin(self._head(target), without_body=self.method == "HEAD")
                if not self.sent:
                    self.sent = monotonic()
                if not self.upload_done and self.upload is None:
                    self.exchange.phase = UPLOADING
                    writer = StreamWriter(protocol, asyncio.get_running_loop())
                    if self.found.chunked:
                        writer.enable_chunking()
                    self.upload = asyncio.get_running_loop().create_task(self._upload(writer))
                await protocol.read_head()
                if protocol.interim:
                    await self._relay_interim(protocol, target)
                return protocol
            except UpstreamInvalid as exc:
                logger.warning("Upstream %s sent an invalid answer: %s", target.url, exc)
                pool.failed(exchange, f"sent an invalid answer: {exc}")
                raise Refused("upstream_invalid") from None
            except UpstreamStale:
                # Of those there are only as many as were kept, and nothing was sent on it.
                upstream.abandon(connection)
                self.connection = None
                exchange.leave_target()
            except UpstreamBroke as exc:
                upstream.abandon(connection)
                self.connection = None
                pool.failed(exchange, f"broke off before answering: {exc}")
                # Nobody has read the body yet when the pooled connection was found closed.
                untouched = self.upload is None
                if retries and untouched:
                    retries -= 1
                    broken = target
                    exchange.leave_target()
                    continue
                logger.warning("Upstream %s broke off before answering: %s", target.url, exc)
                raise Refused("upstream_unreachable") from None

    async def _relay_interim(self, protocol: UpstreamProtocol, target: Target) -> None:
        """Pass on what comes before the final answer, until that one's head is there (RFC 9110 §15.2).

        Raises what reading does.
        """
        wanted = INTERIM in self.scope.get("extensions", ())
        drop_cors = bool(self.found.origin and self.gateway.cors.headers(self.found.origin))
        while protocol.interim:
            for status, fields in protocol.take_interim():
                if wanted:
                    try:
                        headers = read_answer(fields, target.rewriter, drop_cors=drop_cors).headers
                    except MalformedAnswer as exc:
                        raise UpstreamInvalid(str(exc)) from None
                    await self.send({"type": INTERIM, "status": status, "headers": headers})
            await protocol.read_head()

    def _head(self, target: Target) -> bytes:
        """Return the request's head as it goes out: the client's own bytes, our identity, our framing."""
        found, scope, decision = self.found, self.scope, self.decision
        query: bytes = scope["query_string"]
        if found.chunked:
            framing = b"transfer-encoding: chunked\r\n\r\n"
        elif found.length is not None:
            framing = b"content-length: %d\r\n\r\n" % found.length
        else:
            framing = b"\r\n"
        return b"".join(
            [
                self.method.encode("ascii"),
                b" ",
                target.base,
                b"/",
                self.below,
                b"?" + query if query else b"",
                b" HTTP/1.1\r\nhost: ",
                target.host,
                b"\r\n",
                *found.lines,
                self.forwarding,
                b"x-request-id: ",
                self.request_id,
                b"\r\nx-user-id: ",
                decision.user_id,
                b"\r\nx-token-id: ",
                decision.token_id,
                b"\r\n",
                framing,
            ]
        )

    async def _upload(self, writer: StreamWriter) -> None:
        """Pass the body on as it comes, then notice the client's leaving."""
        exchange = self.exchange
        try:
            while True:
                exchange.awaiting_client = True
                message = await self.receive()
                exchange.awaiting_client = False
                if message["type"] == "http.disconnect":
                    exchange.interrupt(CLIENT_GONE)
                    return
                exchange.progress = monotonic()
                if body := message["body"]:
                    if exchange.pace is not None:
                        body = await self._pace(exchange.pace, body, partial(self._pass_up, writer))
                    await writer.write(body)
                    exchange.bytes_in += len(body)
                    if exchange.bytes_in > self.gateway.body_max:
                        exchange.interrupt("body_too_large")
                        return
                if not message["more_body"]:
                    break
            await writer.write_eof()
            self.upload_done = True
        except (OSError, aiohttp.ClientError):
            # The server stopped reading. Its answer, if any, is on its way; the reader finds out.
            pass
        if exchange.phase == UPLOADING:
            exchange.phase = WAITING
            exchange.progress = monotonic()
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not exchange.finishing:
            exchange.interrupt(CLIENT_GONE)

    async def _stream(self, protocol: UpstreamProtocol, chunk: bytes) -> None:
        """Relay the answer's body as it comes; ``chunk`` came with its head.

        Raises :class:`_BrokenOff`. Returning without the last chunk then makes the server hang up, which is what
        tells the client that the answer is not whole.
        """
        exchange, send = self.exchange, self.send
        first = True
        while True:
            more = not protocol.is_complete
            if more and not chunk:
                try:
                    chunk = await protocol.read_body()
                except UpstreamBroke as exc:
                    logger.warning("The upstream broke off in the middle of an answer: %s", exc)
                    raise _BrokenOff from None
                exchange.progress = monotonic()
                more = not protocol.is_complete
            if exchange.pace is not None and chunk:
                if not exchange.has_body:
                    exchange.watch()
                chunk = await self._pace(exchange.pace, chunk, self._pass_down)
            if not more:
                # From here on the server's http.disconnect means the end of the exchange as well.
                exchange.finishing = True
            elif first:
                first = False
                if not exchange.has_body:
                    exchange.watch()
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
            exchange.bytes_out += len(chunk)
            if not more:
                return
            exchange.progress = monotonic()
            chunk = b""

    async def _pace(self, pace: Pace, data: bytes, pass_on: Callable[[bytes], Awaitable[None]]) -> bytes:
        """Pass data on piece by piece, each when its time has come; return the last one at its time."""
        held = b""
        for piece in pace.pieces(data):
            if held:
                await pass_on(held)
            held = piece
            await pace.take(len(piece))
            # The deadlines are for peers that stall, not for what we hold back.
            self.exchange.progress = monotonic()
        return held

    async def _pass_up(self, writer: StreamWriter, piece: bytes) -> None:
        await writer.write(piece)
        self.exchange.bytes_in += len(piece)

    async def _pass_down(self, piece: bytes) -> None:
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})
        self.exchange.bytes_out += len(piece)

    def _release(self) -> None:
        """Give the connection back for the next request, if request and answer are both complete."""
        connection, self.connection = self.connection, None
        assert connection is not None
        if self.upload_done:
            connection.release()
        else:
            upstream.abandon(connection)

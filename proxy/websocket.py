"""WebSockets through the gateway: the same decision before the handshake, then messages both ways.

The upstream's handshake comes first and the client's is completed only when that one succeeded, so that a refusal
of either side reaches the client as an ordinary HTTP answer.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import WSMsgType
from django.conf import settings
from multidict import CIMultiDict
from yarl import URL

from proxy import answers, timing, tracing
from proxy.exceptions import MalformedRequest, Refused
from proxy.headers import Incoming, is_request_id, read_request
from proxy.streams import CLIENT_GONE, STREAMING, Exchange

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.pool import Target

logger = logging.getLogger(__name__)

#: RFC 6455 §7.4.1: what an endpoint may not send in a close frame.
_NOT_SENDABLE = frozenset({1004, 1005, 1006, 1015})
#: Seconds for which an upstream's close frame is waited for.
CLOSE_WITHIN = 2.0
#: Close codes for what we end ourselves: policy violation, service restart, and (IANA registry) bad gateway.
_POLICY, _RESTART, _BAD_GATEWAY = 1008, 1012, 1014
_TOO_BIG = 1009
_INTERNAL_ERROR = 1011
#: Ends that are not the client's doing: it may come again.
_OURS = frozenset({"shutting_down", "upstream_unavailable"})


async def relay_websocket(gateway: Gateway, scope: Any, receive: Any, send: Any) -> None:
    """Relay one WebSocket."""
    arrived = monotonic()
    found: Incoming | None = None
    request_id = uuid.uuid4().hex.encode()
    address = ""
    refused: Refused | None = None
    deciding = False
    try:
        try:
            found = read_request(scope["headers"], "1.1")
            if is_request_id(found.request_id):
                request_id = found.request_id
            below = gateway.below_prefix(scope)
        except MalformedRequest as exc:
            logger.info("Malformed handshake: %s", exc)
            raise Refused("bad_request") from None
        client = scope.get("client")
        address, forwarding = gateway._forwarding.of(
            client[0] if client else "", "https" if scope["scheme"] == "wss" else "http", found
        )
        deciding = True
        digest, decision = await gateway.admit(found, below, "GET", address)
    except Refused as refusal:
        refused = refusal
    except Exception:
        logger.exception("A WebSocket could not be decided on")
        refused, deciding = Refused("internal_error"), False
    if refused is not None:
        decided = monotonic() if deciding else 0.0
        gateway.metrics.answered(refused.code, websocket=True)
        try:
            await receive()
            await _refuse(gateway, scope, send, refused, found, request_id, arrived, decided)
        finally:
            if gateway.access_log is not None:
                gateway.access_log.answered(
                    *("websocket", "GET", refused.code, refused, found, request_id, address),
                    arrived=arrived,
                    decided=decided,
                )
        return

    assert found is not None
    task = asyncio.current_task()
    assert task is not None
    exchange = Exchange(digest, found.device, task, receive)
    exchange.user_agent = found.user_agent
    exchange.is_websocket = True
    exchange.phase = STREAMING
    exchange.address = address
    gateway.enter(exchange, decision, below, "GET")
    trace = tracing.lines_of(found, request_id)
    course = timing.Course(arrived)

    async def refuse(refusal: Refused) -> None:
        course.status, course.refusal = answers.ANSWERS[refusal.code].status, refusal.code
        await _refuse(gateway, scope, send, refusal, found, request_id, arrived, exchange.started)

    outcome = "error"
    peer: aiohttp.ClientWebSocketResponse | None = None
    accepted = False
    try:
        await receive()
        peer = await _connect(gateway, exchange, course, scope, found, below, decision, forwarding + trace, request_id)
        exchange.reached = True
        if not decision.activated:
            if not await gateway.activate(digest, decision):
                raise Refused("token_revoked")
            exchange.expires = decision.expires
        await send(
            {
                "type": "websocket.accept",
                "subprotocol": peer.protocol,
                "headers": [
                    (b"x-request-id", request_id),
                    *gateway.limit_headers(decision),
                    timing.of_answer(course, exchange.started),
                ],
            }
        )
        accepted = True
        course.status = 101
        code, reason = await _relay(exchange, peer, receive, send)
        await _close_client(send, code, reason)
        outcome = "1xx"
    except Refused as refusal:
        outcome = refusal.code
        await refuse(refusal)
    except asyncio.CancelledError:
        outcome = exchange.reason or "shutting_down"
        task.uncancel()
        if accepted:
            await _close_client(send, _RESTART if outcome in _OURS else _POLICY, outcome)
        else:
            await refuse(Refused(outcome))
    except OSError:
        # The client left before it could be told.
        outcome = CLIENT_GONE
        raise
    except Exception:
        logger.exception("A WebSocket could not be relayed")
        outcome = "internal_error"
        if accepted:
            await _close_client(send, _INTERNAL_ERROR, "")
        else:
            await refuse(Refused(outcome))
    finally:
        if gateway.access_log is not None:
            gateway.access_log.relayed(exchange, course, outcome, request_id, trace[tracing.TRACE_ID])
        gateway.leave(exchange)
        if peer is not None and not peer.closed:
            # Not waiting for the peer's close frame: the exchange is over for us.
            closing = asyncio.get_running_loop().create_task(peer.close(code=1001))
            gateway.keep(closing)
        gateway.metrics.relayed(outcome, exchange, course.first_byte, arrived, course.overhead)


async def _connect(
    gateway: Gateway,
    exchange: Exchange,
    course: timing.Course,
    scope: Any,
    found: Incoming,
    below: bytes,
    decision: Any,
    forwarding: bytes,
    request_id: bytes,
) -> aiohttp.ClientWebSocketResponse:
    """Return the upstream's WebSocket. Raises :class:`Refused`."""
    headers: CIMultiDict[str] = CIMultiDict()
    for line in (
        *found.lines,
        *forwarding.splitlines(keepends=True),
        b"x-request-id: %b\r\n" % request_id,
        b"x-user-id: %b\r\n" % decision.user_id,
        b"x-token-id: %b\r\n" % decision.token_id,
    ):
        name, _, value = line[:-2].decode("latin-1").partition(": ")
        # The handshake's own headers are made anew by the client library.
        if not name.lower().startswith("sec-websocket-"):
            headers.add(name, value)
    query: bytes = scope["query_string"]
    failure: Exception | None = None
    conf = settings.GATEWAY
    pool = gateway.upstream
    never: Target | None = None
    for _ in range(2):
        sent = headers
        try:
            # A handshake has no body and changes nothing.
            target = await pool.reserve(exchange, decision.scope, safe=True, never=never)
        except Refused:
            if failure is None:
                raise
            break
        if target.spec.host:
            sent = headers.copy()
            sent["Host"] = target.spec.host
        waits = target.in_flight > target.limit
        if not course.sent:
            # The client library connects and sends in one.
            course.sent = monotonic()
        try:
            async with asyncio.timeout(conf["connect_timeout"] + conf["first_byte_timeout"]):
                peer = await target.session().ws_connect(
                    _url(target, below, query),
                    protocols=scope["subprotocols"],
                    headers=sent,
                    autoping=True,
                    autoclose=True,
                    heartbeat=conf["websocket_ping"],
                    # It refuses messages of this size already.
                    max_msg_size=int(conf["websocket_max_bytes"]) + 1,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_WITHIN),
                    compress=0,
                    ssl=target.tls,
                )
        except aiohttp.WSServerHandshakeError as exc:
            logger.info("Upstream %s refused a WebSocket: %d", target.url, exc.status)
            pool.answered(exchange, exc.status)
            raise Refused("upstream_refused") from None
        except aiohttp.ClientResponseError as exc:
            # Its whole text has the request's address, which goes neither into a log nor to staff; the message has not.
            logger.warning("Upstream %s sent an invalid answer to a handshake: %s", target.url, exc.message)
            pool.failed(exchange, f"sent an invalid answer: {exc.message}")
            raise Refused("upstream_invalid") from None
        except aiohttp.ConnectionTimeoutError as exc:
            if waits:
                # As in Pool.connect.
                raise Refused("upstream_busy") from None
            pool.connecting_failed(exchange, exc)
            never, failure = target, exc
        except TimeoutError:
            pool.failed(exchange, "did not answer a handshake in time")
            raise Refused("upstream_timeout") from None
        except (aiohttp.ClientError, OSError) as exc:
            pool.connecting_failed(exchange, exc)
            never, failure = target, exc
        else:
            course.first_byte = monotonic()
            pool.answered(exchange, 101)
            return peer
    logger.warning("No upstream for a WebSocket: %r", failure)
    raise Refused("connect_timeout" if isinstance(failure, TimeoutError) else "upstream_unreachable") from None


def _url(target: Target, below: bytes, query: bytes) -> URL:
    text = target.url.encode("latin-1") + b"/" + below + (b"?" + query if query else b"")
    # encoded=True: yarl would decode and normalise the path otherwise.
    return URL(text.decode("latin-1"), encoded=True)


async def _relay(exchange: Exchange, peer: aiohttp.ClientWebSocketResponse, receive: Any, send: Any) -> tuple[int, str]:
    """Pass messages both ways until one side closes. Returns the close code and reason for the client."""

    async def upwards() -> tuple[int, str]:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code") or 1005
                if code in _NOT_SENDABLE:
                    # The server says 1005 of a close frame without a code and of a client that vanished alike, but
                    # only of the first it knows a reason.
                    await peer.close(code=1000 if message.get("reason") is not None else 1001)
                else:
                    await peer.close(code=code, message=(message.get("reason") or "").encode())
                return 0, ""
            text = message.get("text")
            if text is not None:
                size = len(text.encode())
                if exchange.pace is not None:
                    await exchange.pace.take(size)
                await peer.send_str(text)
                exchange.bytes_in += size
            else:
                data = message["bytes"]
                if exchange.pace is not None:
                    await exchange.pace.take(len(data))
                await peer.send_bytes(data)
                exchange.bytes_in += len(data)

    async def downwards() -> tuple[int, str]:
        while True:
            message = await peer.receive()
            if message.type is WSMsgType.TEXT:
                size = len(message.data.encode())
                if exchange.pace is not None:
                    await exchange.pace.take(size)
                await send({"type": "websocket.send", "text": message.data})
                exchange.bytes_out += size
            elif message.type is WSMsgType.BINARY:
                if exchange.pace is not None:
                    await exchange.pace.take(len(message.data))
                await send({"type": "websocket.send", "bytes": message.data})
                exchange.bytes_out += len(message.data)
            elif message.type is WSMsgType.CLOSE:
                return message.data or 1005, message.extra or ""
            elif message.type is WSMsgType.ERROR:
                # What the upstream did wrong is no fault of the client's; only about the size it should know.
                return _TOO_BIG if peer.close_code == _TOO_BIG else _BAD_GATEWAY, ""
            else:
                # CLOSING, CLOSED: without a close frame of the upstream there is no code to pass on.
                return peer.close_code or 1006, ""

    loop = asyncio.get_running_loop()
    tasks = {loop.create_task(upwards()), loop.create_task(downwards())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        try:
            return done.pop().result()
        except (aiohttp.ClientError, OSError) as exc:
            logger.warning("A WebSocket broke off: %s", exc)
            return _INTERNAL_ERROR, ""
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close_client(send: Any, code: int, reason: str) -> None:
    """Close the client's side. ``code`` 0: it has closed itself."""
    if code == 0:
        return
    if code == 1006:
        # The upstream vanished. RFC 6455 keeps 1006 off the wire.
        code = _BAD_GATEWAY
    elif code in _NOT_SENDABLE:
        code = 1000
    try:
        await send({"type": "websocket.close", "code": code, "reason": reason})
    except (OSError, RuntimeError):
        # Gone before it could be told.
        pass


async def _refuse(
    gateway: Gateway,
    scope: Any,
    send: Any,
    refusal: Refused,
    found: Incoming | None,
    request_id: bytes,
    arrived: float,
    decided: float,
) -> None:
    """Refuse the handshake with our JSON; with a bare close where the server cannot carry an answer."""
    gateway.metrics.refused(refusal.code)
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY, "reason": refusal.code})
        return
    language = found.accept_language if found else b""
    status, headers, body = answers.build(refusal.code, request_id, language, refusal.headers, refusal.details)
    if decided:
        headers.append(timing.of_refusal(arrived, decided))
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})

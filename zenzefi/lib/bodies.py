"""Request bodies of the control plane are bounded before Django takes them.

Django's ASGI handler spools a whole upload to disk before any view or middleware runs. :class:`BodyLimit` stands
before it: what is announced or turns out to be larger than ``JSON_BODY_MAX_BYTES`` reaches Django as a request
without a body and with a mark, upon which :class:`zenzefi.lib.middleware.BodyLimitMiddleware` answers 413, with the
same fields as every other answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings

from zenzefi.lib.asgi import Message, Receive, Scope, Send

Application = Callable[[Any, Any, Any], Awaitable[None]]

#: Key of the ASGI scope that says that the body was refused.
TOO_LARGE = "zenzefi.body_too_large"
#: Bytes of a refused body that are read and thrown away, so that a client that sends all before it reads gets its
#: answer: closing on unread bytes resets the connection, and the answer with it (RFC 9112 §9.6).
DISCARD_MAX_BYTES = 16 * 1024 * 1024


class BodyLimit:
    """ASGI middleware. A body without a length, sent in chunks, is gathered first: DRF takes it for an empty one."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        fields = {name for name, _ in headers}
        if b"transfer-encoding" in fields:
            await self._in_chunks(scope, receive, send)
            return
        announced = max((int(value) for name, value in headers if name == b"content-length"), default=0)
        if announced <= settings.JSON_BODY_MAX_BYTES:
            await self._application(scope, receive, send)
            return
        # Who waits for 100 Continue has sent nothing yet, and the first receive() would ask for it.
        ended = b"expect" not in fields and announced <= DISCARD_MAX_BYTES
        if ended and await _gather(receive, keep=0) is None:
            return
        await self._refuse(scope, send, close=not ended)

    async def _in_chunks(self, scope: Scope, receive: Receive, send: Send) -> None:
        gathered = await _gather(receive, keep=settings.JSON_BODY_MAX_BYTES)
        if gathered is None:
            return
        body, ended = gathered
        if body is None:
            await self._refuse(scope, send, close=not ended)
            return
        await self._application(_with_length(scope, len(body)), _replay(body, receive), send)

    async def _refuse(self, scope: Scope, send: Send, *, close: bool) -> None:
        async def closing(message: Message) -> None:
            if close and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._application({**_with_length(scope, 0), TOO_LARGE: True}, _replay(b"", _silence), closing)


async def _gather(receive: Receive, *, keep: int) -> tuple[bytes | None, bool] | None:
    """Read the body and return it, ``None`` for one of more than ``keep`` bytes, and whether it was read to its end.

    ``None`` alone when the client has gone.
    """
    body: bytearray | None = bytearray()
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        size += len(piece)
        if size > keep:
            body = None
        elif body is not None:
            body += piece
        ended = not message.get("more_body", False)
        if ended or size > DISCARD_MAX_BYTES:
            return (None if body is None else bytes(body)), ended


def _with_length(scope: Scope, length: int) -> Scope:
    framing = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name not in framing]
    if length:
        headers.append((b"content-length", str(length).encode()))
    return {**scope, "headers": headers}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body at once and then, as Django listens on, what the client does."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _silence() -> Message:
    """Wait until cancelled: the real ``receive()`` would ask the client to continue, or give what is left unread."""
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")

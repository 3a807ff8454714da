"""Answers that are slow, endless or broken."""

import asyncio
import contextlib
import socket
import struct

from aiohttp import web

from zenzefi.runtime.demo_upstream.exchange import query_values, real_number, refusal, route, whole_number
from zenzefi.runtime.demo_upstream.wire import MAX_GENERATED_BYTES, pattern


async def events(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    """Server-sent events; `n=0` goes on until the client leaves."""
    count = whole_number(request, "n", 5, most=10**9)
    interval = real_number(request, "interval", 0.1, most=86_400)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    number = 0
    while request.method != "HEAD" and (count == 0 or number < count):
        if number:
            await asyncio.sleep(interval)
        await response.write(f'id: {number}\nevent: tick\ndata: {{"n":{number}}}\n\n'.encode())
        number += 1
    return response


async def slow(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    seconds = real_number(request, "seconds", 1, most=86_400)
    await asyncio.sleep(seconds)
    return web.json_response({"slept": seconds})


async def trickle(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    count = whole_number(request, "n", 10, most=10**9)
    interval = real_number(request, "interval", 0.1, most=86_400)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    response.content_length = count
    await response.prepare(request)
    if request.method != "HEAD":
        for number in range(count):
            if number:
                await asyncio.sleep(interval)
            await response.write(b"%d" % (number % 10))
    return response


async def hang(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nothing ends this wait but cancellation")


async def reset(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    """Cuts the connection with RST: at once, or with `after` after that many bytes of a promised `length`."""
    after = whole_number(request, "after", -1, most=MAX_GENERATED_BYTES) if "after" in query_values(request) else -1
    if after >= 0:
        response = web.StreamResponse()
        response.content_length = whole_number(request, "length", after + 1, most=MAX_GENERATED_BYTES)
        await response.prepare(request)
        for piece in pattern(0, after):
            await response.write(piece)
        # A reset discards what the peer has not read yet; let it have these bytes first.
        await asyncio.sleep(0.05)
    if request.transport is not None:
        peer = request.transport.get_extra_info("socket")
        if peer is not None:
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    raise ConnectionResetError("reset on request")


async def early(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    """Refuses without reading the body."""
    return refusal(413, "refused before the body was read")


ROUTES = (
    route("GET", "/events", events),
    route("*", "/slow", slow),
    route("GET", "/trickle", trickle),
    route("*", "/hang", hang, reads_body=True),
    route("*", "/reset", reset, reads_body=True),
    route("*", "/early", early, reads_body=True),
)

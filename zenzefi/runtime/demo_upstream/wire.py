"""Routes that show what a proxy did to a request, and bodies of every size and shape."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime

from aiohttp import WSCloseCode, WSMsgType, web

from zenzefi.runtime.demo_upstream.exchange import (
    EXCHANGE,
    BadRequestError,
    body_chunks,
    query_values,
    refusal,
    route,
    whole_number,
)

VERSION = "4.2.0-demo"
MAX_GENERATED_BYTES = 2**40

# A prime period, so that a chunk lost, doubled or out of order never leaves the bytes as they were.
_PERIOD = 65_521
_CHUNK = 256 * 1024
_PATTERN = (hashlib.shake_256(b"zenzefi demo upstream").digest(_PERIOD) * (_CHUNK // _PERIOD + 2))[: _PERIOD + _CHUNK]
_LAST_MODIFIED = 1_767_225_600  # 2026-01-01T00:00:00Z

SMALL_JSON = json.dumps(
    {"name": "demo", "version": VERSION, "items": list(range(20)), "text": "a small answer ".ljust(142, ".")},
    separators=(",", ":"),
).encode()
GZIP_DECODED = b"The same line, again and again. ".ljust(50, b".") * 100


def pattern(start: int, stop: int) -> Iterator[memoryview]:
    """Bytes start..stop of the deterministic sequence ``/bytes`` serves, in pieces of at most 256 KiB."""
    view = memoryview(_PATTERN)
    while start < stop:
        offset = start % _PERIOD
        size = min(_CHUNK, stop - start)
        yield view[offset : offset + size]
        start += size


def pattern_sha256(length: int) -> str:
    """SHA-256 (hex) of what ``/bytes/{length}`` serves."""
    digest = hashlib.sha256()
    for piece in pattern(0, length):
        digest.update(piece)
    return digest.hexdigest()


async def index(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.json_response({"message": "Zenzefi demo upstream", "version": VERSION})


async def version(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.json_response({"version": VERSION, "product": "demo upstream"})


async def small_json(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.Response(body=SMALL_JSON, content_type="application/json")


async def inspect(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    exchange = request[EXCHANGE]
    exchange.need_digest()
    async for _chunk in body_chunks(request):
        pass
    return web.json_response(
        {
            "method": exchange.method,
            "target": exchange.target.decode("latin-1"),
            "http_version": exchange.http_version,
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in exchange.headers],
            "body_length": exchange.body_length,
            "body_sha256": exchange.body_sha256,
        }
    )


async def echo(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    """Each chunk goes back as soon as it came, so that a proxy which buffers either way shows."""
    response = web.StreamResponse()
    for name in ("Content-Type", "Content-Encoding"):
        if name in request.headers:
            response.headers[name] = request.headers[name]
    if request.content_length is not None or not request.body_exists:
        response.content_length = request.content_length or 0
    else:
        response.enable_chunked_encoding()
    await response.prepare(request)
    async for chunk in body_chunks(request):
        if request.method != "HEAD":
            await response.write(chunk)
    return response


async def sink(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    exchange = request[EXCHANGE]
    # Load measurements ask for no digest: it would cost more than the transfer.
    if query_values(request).get("digest") != "0":
        exchange.need_digest()
    async for _chunk in body_chunks(request):
        pass
    return web.json_response({"length": exchange.body_length, "sha256": exchange.body_sha256})


def _entity_matches(header: str, etag: str, *, weak: bool) -> bool:
    candidates = [part.strip() for part in header.split(",")]
    return "*" in candidates or any((part.removeprefix("W/") if weak else part) == etag for part in candidates)


def _unmodified_since(header: str) -> bool:
    try:
        return parsedate_to_datetime(header).timestamp() >= _LAST_MODIFIED
    except (TypeError, ValueError):
        return False


def _byte_range(header: str, size: int) -> tuple[int, int] | None:
    """(start, stop) of a single range; None when the header is to be ignored (RFC 9110 §14.2).

    Raises IndexError when it cannot be satisfied.
    """
    match = re.fullmatch(r"bytes=\s*(\d*)-(\d*)\s*", header, re.IGNORECASE)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        if int(last) == 0 or size == 0:
            raise IndexError(header)
        return max(0, size - int(last)), size
    start, stop = int(first), min(size, int(last) + 1) if last else size
    if last and int(last) < int(first):
        return None
    if start >= size:
        raise IndexError(header)
    return start, stop


async def generated_bytes(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    """Conditions in the order of RFC 9110 §13.2.2, then a single range. `?chunked=1` hides the length."""
    size = int(path["n"])
    if size > MAX_GENERATED_BYTES:
        return refusal(413, "too large")
    etag = f'"demo-{size}"'
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(_LAST_MODIFIED, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    asked = request.headers
    if "If-Match" in asked:
        if not _entity_matches(asked["If-Match"], etag, weak=False):
            return web.Response(status=412, headers=headers)
    elif "If-Unmodified-Since" in asked and not _unmodified_since(asked["If-Unmodified-Since"]):
        return web.Response(status=412, headers=headers)
    if "If-None-Match" in asked:
        if _entity_matches(asked["If-None-Match"], etag, weak=True):
            return web.Response(status=304, headers=headers)
    elif "If-Modified-Since" in asked and _unmodified_since(asked["If-Modified-Since"]):
        return web.Response(status=304, headers=headers)

    start, stop, status = 0, size, 200
    fresh = "If-Range" not in asked or asked["If-Range"] in (etag, headers["Last-Modified"])
    if request.method == "GET" and "Range" in asked and fresh:
        try:
            wanted = _byte_range(asked["Range"], size)
        except IndexError:
            return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        if wanted is not None:
            start, stop = wanted
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"

    response = web.StreamResponse(status=status, headers=headers)
    if query_values(request).get("chunked") == "1":
        response.enable_chunked_encoding()
    else:
        response.content_length = stop - start
    await response.prepare(request)
    if request.method != "HEAD":
        for piece in pattern(start, stop):
            await response.write(piece)
    return response


async def gzipped(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    return web.Response(
        body=gzip.compress(GZIP_DECODED, mtime=0),
        headers={"Content-Encoding": "gzip", "Content-Type": "text/plain", "Vary": "Accept-Encoding"},
    )


async def status(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    code = int(path["code"])
    if not 200 <= code <= 599:
        return refusal(400, "status must lie between 200 and 599")
    if code in (204, 205, 304):
        return web.Response(status=code)
    return web.json_response({"status": code}, status=code)


async def redirect(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    target = query_values(request).get("to", "/")
    code = whole_number(request, "code", 302, most=399)
    if code < 300 or any(ord(character) < 32 for character in target):
        raise BadRequestError("not a redirect")
    return web.Response(status=code, headers={"Location": target})


async def cookies(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    response = web.json_response(
        {"received": [value.decode("latin-1") for value in request[EXCHANGE].header("cookie")]}
    )
    response.headers.add("Set-Cookie", "demo_session=first; Path=/; HttpOnly")
    host = request.headers.get("Host", "localhost").partition(":")[0]
    response.headers.add("Set-Cookie", f"demo_view=second; Domain={host}; Path=/system; SameSite=Lax")
    return response


async def many_headers(request: web.Request, path: dict[str, str]) -> web.StreamResponse:
    count = int(path["n"])
    if count > 10_000:
        raise BadRequestError("too many headers")
    size = whole_number(request, "size", 5, most=65_536)
    response = web.json_response({"headers": count})
    for number in range(count):
        response.headers.add(f"X-Demo-{number:05d}", f"{number:05d}".ljust(size, "v"))
    return response


async def websocket(request: web.Request, _: dict[str, str]) -> web.StreamResponse:
    """Echoes text and binary messages. `?close=4001` closes right after the handshake with that code;
    `?hello=1` first sends the handshake's headers as JSON."""
    socket_ = web.WebSocketResponse(protocols=("chat", "json"), max_msg_size=0)
    if not socket_.can_prepare(request).ok:
        return web.Response(status=426, headers={"Upgrade": "websocket", "Connection": "Upgrade"})
    asked = query_values(request)
    await socket_.prepare(request)
    if "close" in asked:
        await socket_.close(code=whole_number(request, "close", 1000, most=4999), message=b"as asked")
        return socket_
    if "hello" in asked:
        pairs = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers]
        await socket_.send_json({"headers": pairs, "protocol": socket_.ws_protocol})
    async for message in socket_:
        if message.type is WSMsgType.TEXT:
            await socket_.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket_.send_bytes(message.data)
        elif message.type is WSMsgType.ERROR:
            await socket_.close(code=WSCloseCode.PROTOCOL_ERROR)
    return socket_


ROUTES = (
    route("GET", "/", index),
    route("GET", "/system/version", version),
    route("GET", "/json", small_json),
    route("GET", "/bytes/{n:d}", generated_bytes),
    route("*", "/echo", echo, reads_body=True),
    route("*", "/inspect", inspect, reads_body=True),
    route("*", "/sink", sink, reads_body=True),
    route("GET", "/gzip", gzipped),
    route("*", "/status/{code:d}", status),
    route("*", "/redirect", redirect),
    route("GET", "/cookies", cookies),
    route("GET", "/headers/{n:d}", many_headers),
    route("GET", "/ws", websocket, reads_body=True),
)

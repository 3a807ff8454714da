"""One request as it arrived, and what handlers read it with."""

import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

# Certificates and settings are read into memory; everything else streams.
MAX_DOCUMENT_BYTES = 2**20


class Exchange:
    """One request as it arrived: target and headers are raw bytes, in order, undecoded.

    The body fields grow while it is read; `finished` is set when the handler has ended, and `outcome` then
    says how: "answered", or "abandoned" when the peer left first.
    """

    def __init__(self, request: web.BaseRequest, *, with_digest: bool) -> None:
        self.method = request.method
        self.target = request.raw_path.encode("utf-8", "surrogateescape")
        self.headers: list[tuple[bytes, bytes]] = list(request.raw_headers)
        self.http_version = f"{request.version.major}.{request.version.minor}"
        self.body_length = 0
        self._digest = hashlib.sha256() if with_digest else None
        self.finished = threading.Event()
        self.outcome: str | None = None

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]

    @property
    def body_sha256(self) -> str | None:
        """Hex digest of what was read so far; None when this exchange is not digested."""
        return self._digest.hexdigest() if self._digest else None

    def header(self, name: str) -> list[bytes]:
        """Every value of a header, in order of arrival."""
        wanted = name.lower().encode("latin-1")
        return [value for key, value in self.headers if key.lower() == wanted]

    def need_digest(self) -> None:
        if self._digest is None:
            self._digest = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        self.body_length += len(chunk)
        if self._digest is not None:
            self._digest.update(chunk)

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.target!r} body={self.body_length} {self.outcome or 'open'}>"


Observer = Callable[[Exchange], None]
Handler = Callable[[web.Request, dict[str, str]], Awaitable[web.StreamResponse]]
EXCHANGE = web.RequestKey("exchange", Exchange)


class BadRequestError(ValueError):
    """The request cannot be served as it is; the message goes to the caller."""


def refusal(status: int, detail: str, **extra: Any) -> web.Response:
    return web.json_response({"detail": detail, **extra}, status=status)


async def body_chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The request body as it arrives, still encoded, counted on the way."""
    exchange = request[EXCHANGE]
    async for chunk in request.content.iter_any():
        exchange.feed(chunk)
        yield chunk


async def read_document(request: web.Request) -> bytes:
    parts = bytearray()
    async for chunk in body_chunks(request):
        parts += chunk
        if len(parts) > MAX_DOCUMENT_BYTES:
            raise BadRequestError("document too large")
    return bytes(parts)


async def read_json(request: web.Request) -> Any:
    body = await read_document(request)
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadRequestError("the body is not JSON") from error


def query_values(request: web.Request) -> dict[str, str]:
    pairs = parse_qs(request[EXCHANGE].query.decode("latin-1"), keep_blank_values=True, encoding="utf-8")
    return {name: values[-1] for name, values in pairs.items()}


def real_number(request: web.Request, name: str, default: float, *, most: float) -> float:
    text = query_values(request).get(name, "")
    try:
        value = float(text) if text else default
    except ValueError as error:
        raise BadRequestError(f"{name} is not a number") from error
    if not 0 <= value <= most:
        raise BadRequestError(f"{name} must lie between 0 and {most:g}")
    return value


def whole_number(request: web.Request, name: str, default: int, *, most: int) -> int:
    return int(real_number(request, name, default, most=most))


@dataclass(frozen=True, slots=True)
class Route:
    pattern: re.Pattern[str]
    methods: frozenset[str] | None
    handler: Handler
    reads_body: bool

    def allows(self, method: str) -> bool:
        return self.methods is None or method in self.methods


def route(methods: str, template: str, handler: Handler, *, reads_body: bool = False) -> Route:
    """`{name}` stands for one segment, `{name:d}` for a number. GET implies HEAD; `*` is every method.

    A handler that does not read the body itself is called when the body has been read and dropped.
    """
    expression = re.escape(template)
    expression = re.sub(r"\\\{(\w+):d\\\}", r"(?P<\1>\\d{1,15})", expression)
    expression = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", expression)
    allowed = None if methods == "*" else frozenset(methods.split())
    if allowed and "GET" in allowed:
        allowed |= {"HEAD"}
    return Route(re.compile(expression), allowed, handler, reads_body)

"""The application: routes matched on the bytes that arrived, and the server around them."""

import asyncio
import logging
import signal
from typing import Any
from urllib.parse import unquote_to_bytes

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from zenzefi.runtime.demo_upstream import certificates, trouble, wire
from zenzefi.runtime.demo_upstream.certificates import STORE
from zenzefi.runtime.demo_upstream.exchange import EXCHANGE, Exchange, Observer, body_chunks, refusal
from zenzefi.runtime.demo_upstream.inventory import CertificateStore, UnknownCertificateError

OBSERVER = web.AppKey("observer", object)
# A proxy in front may send long header sections on purpose; its own limits are to answer, not ours.
MAX_HEADER_LINE = 2**18
MAX_HEADERS = 2000
STOP_WITHIN_SECONDS = 0.3

_ROUTES = (*wire.ROUTES, *trouble.ROUTES, *certificates.ROUTES)

_log = logging.getLogger(__name__)
# Whoever sends us a malformed request is told so; a traceback here would help nobody.
_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


async def _answer(request: web.Request, exchange: Exchange) -> web.StreamResponse:
    path = exchange.path.decode("latin-1")
    if not path.startswith("/"):
        # RFC 9112 §3.2.2: a server accepts the absolute form as well.
        path = "/" + path.partition("://")[2].partition("/")[2]
    allowed: set[str] = set()
    for route in _ROUTES:
        match = route.pattern.fullmatch(path)
        if match is None:
            continue
        if not route.allows(exchange.method):
            allowed |= route.methods or set()
            continue
        if not route.reads_body:
            async for _chunk in body_chunks(request):
                pass
        values = {name: unquote_to_bytes(value).decode("utf-8", "replace") for name, value in match.groupdict().items()}
        try:
            return await route.handler(request, values)
        except UnknownCertificateError as error:
            return refusal(404, "no such certificate", id=str(error))
        except ValueError as error:
            return refusal(400, str(error))
    async for _chunk in body_chunks(request):
        pass
    target = exchange.target.decode("latin-1")
    if allowed:
        response = refusal(405, "method not allowed", target=target)
        response.headers["Allow"] = ", ".join(sorted(allowed))
        return response
    return refusal(404, "no such path", target=target)


@web.middleware
async def _dispatch(request: web.Request, handler: Any) -> web.StreamResponse:
    # aiohttp's own router matches decoded paths; from a middleware every target that parses is answered here.
    observer = request.app[OBSERVER]
    exchange = Exchange(request, with_digest=observer is not None)
    request[EXCHANGE] = exchange
    if callable(observer):
        observer(exchange)
    exchange_outcome = "abandoned"
    try:
        response = await _answer(request, exchange)
        exchange_outcome = "answered"
        return response
    except (ConnectionError, web.RequestPayloadError):
        # The peer is gone, or we cut it off: there is nobody to answer and nothing to log.
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=400)
    finally:
        exchange.outcome = exchange_outcome
        exchange.finished.set()


def make_app(*, observer: Observer | None = None) -> web.Application:
    """The demo upstream with a fresh certificate store.

    The observer is called once per request, when its header section has arrived, in the server's thread.
    """
    app = web.Application(middlewares=[_dispatch], client_max_size=0)
    app[STORE] = CertificateStore()
    app[OBSERVER] = observer
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """A runner that leaves bodies as they came, ends a handler when its client leaves, and stops at once."""
    return web.AppRunner(
        app,
        access_log=None,
        logger=_log,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=STOP_WITHIN_SECONDS,
        auto_decompress=False,
        max_line_size=MAX_HEADER_LINE,
        max_field_size=MAX_HEADER_LINE,
        max_headers=MAX_HEADERS,
    )


async def serve(*, host: str, port: int, uds: str | None = None) -> None:
    """Serves until SIGTERM or SIGINT; raises OSError when the address is taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = make_runner(make_app())
    await runner.setup()
    site = web.UnixSite(runner, uds, backlog=2048) if uds else web.TCPSite(runner, host, port, backlog=2048)
    try:
        await site.start()
        await stop.wait()
    finally:
        await runner.cleanup()

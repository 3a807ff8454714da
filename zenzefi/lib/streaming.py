"""Answers that are sent while they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse

#: Key of an ``http.response.start`` message, true when the first body message follows without waiting: our server
#: then writes both together. Others ignore what they do not know.
BODY_FOLLOWS = "zenzefi.body_follows"
#: A message with the ``status`` and ``headers`` of an interim answer (RFC 9110 §15.2), before ``http.response.start``.
#: Only for a server that names it in ``scope["extensions"]``; ours does to HTTP/1.1.
INTERIM = "zenzefi.interim"
#: A message with a whole answer without a body, in place of ``http.response.start`` and what follows it: ``lines``, its
#: header lines as they go out, and their ``count``. They frame nothing. Only for a server that names it likewise.
ANSWER = "zenzefi.answer"


def streaming_response(request: HttpRequest, parts: Iterator[str], *, content_type: str) -> StreamingHttpResponse:
    """Return an answer whose parts are made one by one, as the client takes them.

    Under ASGI Django would first collect all parts of a synchronous iterator; there each is fetched in the request's
    thread when it is needed.
    """
    content = _one_by_one(parts) if isinstance(request, ASGIRequest) else parts
    return StreamingHttpResponse(content, content_type=content_type)


async def _one_by_one(parts: Iterator[str]) -> AsyncIterator[str]:
    fetch = sync_to_async(lambda: next(parts, None))
    while (part := await fetch()) is not None:
        yield part

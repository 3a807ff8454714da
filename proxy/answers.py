"""The gateway's own answers: JSON of a stable code and a sentence in the caller's language."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils import translation
from django.utils.translation import gettext, gettext_noop
from django.utils.translation.trans_real import parse_accept_lang_header

Header = tuple[bytes, bytes]
#: Seconds a caller is asked to wait where nothing better is known.
RETRY_AFTER = b"2"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str
    #: Seconds, of a 503.
    retry_after: bytes = RETRY_AFTER


ANSWERS = {
    "not_found": Answer(404, gettext_noop("Not found.")),
    "bad_request": Answer(400, gettext_noop("The request is malformed.")),
    "token_missing": Answer(401, gettext_noop("An access token is needed in the header X-Access-Token.")),
    "token_invalid": Answer(401, gettext_noop("The access token is not known.")),
    "token_revoked": Answer(401, gettext_noop("The access token is revoked.")),
    "token_held": Answer(401, gettext_noop("The access token is offered as a gift.")),
    "token_expired": Answer(401, gettext_noop("The access token has expired.")),
    "owner_disabled": Answer(401, gettext_noop("The account of this access token is disabled.")),
    "device_missing": Answer(403, gettext_noop("The device must be named in the header X-Device-ID.")),
    "device_malformed": Answer(400, gettext_noop("The header X-Device-ID must be 8 to 255 visible ASCII characters.")),
    "path_ambiguous": Answer(400, gettext_noop("The path is ambiguous and this access token is restricted to paths.")),
    "method_overridden": Answer(
        400, gettext_noop("A header names another method and this access token is restricted to paths.")
    ),
    "scope_forbidden": Answer(403, gettext_noop("This access token does not open this path.")),
    "device_conflict": Answer(409, gettext_noop("Another device is using this access token.")),
    "address_forbidden": Answer(403, gettext_noop("This access token may not be used from this address.")),
    "gateway_only": Answer(
        403, gettext_noop("This access token has limits that hold only for requests to the gateway itself.")
    ),
    "rate_limited": Answer(429, gettext_noop("Too many requests.")),
    "concurrency_limited": Answer(429, gettext_noop("Too many requests of this access token at once.")),
    "quota_exceeded": Answer(429, gettext_noop("The quota of this access token is used up.")),
    "gateway_closed": Answer(503, gettext_noop("The gateway is closed for the moment. Please try again later."), b"30"),
    "method_not_allowed": Answer(405, gettext_noop("This method is not relayed.")),
    "request_timeout": Answer(408, gettext_noop("The request body did not arrive in time.")),
    "body_too_large": Answer(413, gettext_noop("The request body is too large.")),
    "upstream_unreachable": Answer(502, gettext_noop("The Zenzefi server cannot be reached.")),
    "upstream_invalid": Answer(502, gettext_noop("The Zenzefi server sent an invalid answer.")),
    "upstream_refused": Answer(502, gettext_noop("The Zenzefi server refused the WebSocket.")),
    "upstream_timeout": Answer(504, gettext_noop("The Zenzefi server did not answer in time.")),
    "connect_timeout": Answer(504, gettext_noop("No connection to the Zenzefi server was made in time.")),
    "total_timeout": Answer(504, gettext_noop("The request took longer than a request may.")),
    "upstream_unavailable": Answer(
        503, gettext_noop("No Zenzefi server is available at the moment. Please try again.")
    ),
    "upstream_busy": Answer(503, gettext_noop("The Zenzefi server is busy. Please try again.")),
    "upstream_missing": Answer(503, gettext_noop("No Zenzefi server is configured.")),
    "service_unavailable": Answer(503, gettext_noop("The service is temporarily unavailable. Please try again.")),
    "shutting_down": Answer(503, gettext_noop("The service is restarting. Please try again.")),
    "internal_error": Answer(500, gettext_noop("Something went wrong on our side.")),
}


@functools.lru_cache(maxsize=256)
def language_of(accept_language: bytes) -> str:
    """Return the supported language that an ``Accept-Language`` prefers (RFC 9110 §12.5.4)."""
    supported = dict(settings.LANGUAGES)
    for name, quality in parse_accept_lang_header(accept_language.decode("latin-1")):
        if quality <= 0 or name == "*":
            continue
        for candidate in (name, name.partition("-")[0]):
            if candidate in supported:
                return candidate
    return settings.LANGUAGE_CODE


@functools.lru_cache(maxsize=256)
def _body_start(code: str, language: str) -> bytes:
    with translation.override(language):
        text = gettext(ANSWERS[code].text)
    return json.dumps({"detail": text, "code": code}, ensure_ascii=False).encode()[:-1]


def build(
    code: str,
    request_id: bytes,
    accept_language: bytes,
    extra: Sequence[Header] = (),
    details: Mapping[str, Any] | None = None,
) -> tuple[int, list[Header], bytes]:
    """Return status, headers and body of one of our own answers, with the refusal's own headers and details."""
    language = language_of(accept_language[:256])
    body = b'%b, "request_id": "%b"}' % (_body_start(code, language), request_id)
    if details:
        body = b"%b, %b" % (body[:-1], json.dumps(details).encode()[1:])
    answer = ANSWERS[code]
    status = answer.status
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"content-language", language.encode()),
        (b"cache-control", b"no-store"),
        (b"vary", b"Accept-Language"),
        (b"x-zenzefi-error", code.encode()),
        (b"x-request-id", request_id),
    ]
    if status == 401:
        # RFC 9110 §15.5.2 demands a challenge.
        headers.append((b"www-authenticate", b'X-Access-Token realm="zenzefi"'))
    elif status == 413:
        # The rest of the body would have to be read to tell where the next request begins.
        headers.append((b"connection", b"close"))
    elif status == 503 and not any(name == b"retry-after" for name, _ in extra):
        headers.append((b"retry-after", answer.retry_after))
    headers.extend(extra)
    return status, headers, body

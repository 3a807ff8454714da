"""What the server's parser lets pass although two servers could read it differently, or no handler could use it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from urllib.parse import urlsplit

Fields = Sequence[tuple[bytes, bytes]]

_VERSIONS = ("1.1", "1.0")


def is_good_request_line(target: bytes, version: str, fields: Fields) -> bool:
    """Whether a request's first line may be acted on (RFC 9112 §3).

    A fragment is never sent (RFC 9110 §7.1). The absolute form is for a server's own authority: another one beside
    ``Host`` is how a request is routed by the one and judged by the other.
    """
    if b"#" in target or version not in _VERSIONS:
        return False
    if target[:1] == b"/" or target == b"*":
        return True
    try:
        parts = urlsplit(target.decode("ascii"))
    except ValueError:
        return False
    hosts = [value.strip(b" \t") for name, value in fields if name == b"host"]
    return parts.scheme.lower() in ("http", "https") and hosts == [parts.netloc.encode("ascii")]


def handshake_fault(method: str, version: str, fields: Fields) -> str | None:
    """Return what keeps a request for a WebSocket from being one (RFC 6455 §4.2.1); ``None`` when nothing does."""
    if method != "GET" or version != "1.1":
        return "a handshake is a GET of HTTP/1.1"
    versions = [value for name, value in fields if name == b"sec-websocket-version"]
    if versions != [b"13"]:
        return "Sec-WebSocket-Version is not 13"
    keys = [value.strip() for name, value in fields if name == b"sec-websocket-key"]
    try:
        sound = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except binascii.Error:
        sound = False
    if not sound:
        return "Sec-WebSocket-Key is not one key of 16 bytes"
    if any(name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in fields):
        return "a handshake has no body"
    return None

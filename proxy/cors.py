"""CORS on the gateway's own path: Django's middleware never sees these requests.

Only configured origins are answered, by name and with credentials allowed, never with ``*``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.conf import settings

Header = tuple[bytes, bytes]

_METHODS = b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
#: Seconds that a browser may remember a preflight.
_MAX_AGE = b"86400"


class Cors:
    def __init__(self, origins: Iterable[str]) -> None:
        exposed = ", ".join(settings.CORS_EXPOSE_HEADERS).encode()
        self._headers: dict[bytes, tuple[Header, ...]] = {
            origin.encode(): (
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", exposed),
                (b"vary", b"Origin"),
            )
            for origin in origins
        }

    def headers(self, origin: bytes) -> Sequence[Header]:
        """Return what an answer to a page of this origin carries; nothing for an unknown one."""
        return self._headers.get(origin, ())

    def preflight(self, origin: bytes, request: Sequence[Header]) -> list[Header] | None:
        """Return the headers that answer a preflight; ``None`` when the request is none of ours to answer."""
        if origin not in self._headers:
            return None
        asked = {name.lower(): value for name, value in request if name.lower().startswith(b"access-control-request")}
        if b"access-control-request-method" not in asked:
            return None
        answer = [
            *self._headers[origin],
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", _MAX_AGE),
            (b"content-length", b"0"),
        ]
        # The upstream's own headers are not known here; what the page asks to send it may.
        if names := asked.get(b"access-control-request-headers"):
            answer.append((b"access-control-allow-headers", names))
        return answer

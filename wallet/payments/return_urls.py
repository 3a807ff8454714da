"""Where a customer may be sent back to after paying."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from django.conf import settings

from wallet.exceptions import ReturnUrlRefused

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PRINTABLE = re.compile(r"[!-~]{1,2048}")


def check(url: str) -> None:
    """Accept an http(s) address of our own origins or of the desktop client's local page, on any port.

    Anything else would make our payment page an open redirect. Raises :class:`ReturnUrlRefused`.
    """
    # Browsers read a backslash as a slash, so "https://ours\\@theirs" would lead to theirs.
    if not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise ReturnUrlRefused
    try:
        parts = urlsplit(url)
        origin = (parts.scheme, parts.hostname, parts.port or _default_port(parts.scheme))
    except ValueError:
        raise ReturnUrlRefused from None
    if parts.scheme not in {"http", "https"} or "@" in parts.netloc or not parts.hostname:
        raise ReturnUrlRefused
    if parts.hostname not in _LOOPBACK and origin not in _own_origins():
        raise ReturnUrlRefused


def _own_origins() -> set[tuple[str, str | None, int]]:
    own = [urlsplit(url) for url in (settings.FRONTEND_URL, settings.BACKEND_URL, *settings.CORS_ALLOWED_ORIGINS)]
    return {(parts.scheme, parts.hostname, parts.port or _default_port(parts.scheme)) for parts in own}


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80

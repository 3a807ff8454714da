"""The token itself: how it is made, recognised and remembered.

``znz_``, 54 random URL-safe characters (324 bits), and a checksum of six: 64 characters. The checksum is the CRC-32
of all that stands before it, in base 62, so that a secret scanner can tell a real token from a look-alike and
the gateway can refuse a mistyped one without looking anything up. It proves nothing about who made the token.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "znz_"
LENGTH = 64
_RANDOM_LENGTH = 54
_CHECKSUM_LENGTH = 6
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SHAPE = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{{_RANDOM_LENGTH}}}[0-9A-Za-z]{{{_CHECKSUM_LENGTH}}}")


def generate() -> str:
    """Return a new token of 64 characters."""
    body = PREFIX + secrets.token_urlsafe(_RANDOM_LENGTH)[:_RANDOM_LENGTH]
    return body + _checksum(body)


def is_well_formed(token: str) -> bool:
    """Whether the text has the shape of a token and its checksum is right."""
    return _SHAPE.fullmatch(token) is not None and _checksum(token[:-_CHECKSUM_LENGTH]) == token[-_CHECKSUM_LENGTH:]


def digest(token: str) -> str:
    """Return what is stored of a token: its SHA-256 in lower-case hexadecimal.

    A plain hash is enough for 324 random bits: there is nothing to guess, so nothing to slow down.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("ascii"))
    characters = []
    for _ in range(_CHECKSUM_LENGTH):
        number, remainder = divmod(number, 62)
        characters.append(_BASE62[remainder])
    return "".join(reversed(characters))

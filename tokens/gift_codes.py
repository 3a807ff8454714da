"""The code of a gift: how it is made, read and remembered.

``GIFT-`` and sixteen random characters of Crockford's Base32 (80 bits) in groups of four. What people type is read
generously: in any case, with or without dashes, spaces and prefix, the letter O as a zero, I and L as a one.
"""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "GIFT"
LENGTH = 16
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOK_ALIKES = str.maketrans("OIL", "011")
_CANONICAL = re.compile(rf"[{_ALPHABET}]{{{LENGTH}}}")
_AS_TYPED = re.compile(r"[A-Za-z0-9 -]{16,40}", re.ASCII)


def generate() -> str:
    """Return the sixteen characters of a new code."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(LENGTH))


def shown(characters: str) -> str:
    """Return a code as people see it: ``GIFT-XXXX-XXXX-XXXX-XXXX``."""
    return "-".join([PREFIX, *(characters[start : start + 4] for start in range(0, LENGTH, 4))])


def canonical(typed: str) -> str | None:
    """Return the sixteen characters that were meant, ``None`` for what cannot be a code."""
    if not _AS_TYPED.fullmatch(typed):
        return None
    characters = typed.upper().replace("-", "").replace(" ", "")
    if len(characters) == len(PREFIX) + LENGTH:
        characters = characters.removeprefix(PREFIX)
    characters = characters.translate(_LOOK_ALIKES)
    return characters if _CANONICAL.fullmatch(characters) else None


def digest(characters: str) -> str:
    """Return what is stored of a code: the SHA-256 of its canonical form in lower-case hexadecimal.

    A plain hash is enough: 80 random bits that live for days cannot be guessed.
    """
    return hashlib.sha256(characters.encode()).hexdigest()

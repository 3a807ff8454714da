"""Which scopes a path is open under, decided on the bytes that will be sent.

A rule names whole segments below the upstream's base path; a last segment ``…`` (or ``...``) stands for one or
more further segments. Only an unambiguous path is matched: one that some server on the way could read
differently than we did (dot segments, empty segments, encoded slashes, dots or backslashes, NUL) is refused
before matching, so that the bytes matched are the bytes meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: The scope that needs no rules: everything passes byte for byte.
FULL = "full"

_REST = ("…", "...")
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")
# RFC 3986 §3.3: what may stand in a path. Anything else is read differently by different servers.
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@/%-]*")
_ESCAPE = re.compile(rb"%(?:[0-9A-Fa-f]{2})?")
# Encoded "/", "\", ".", ";", "%", controls and DEL. A second decoding, or one before splitting, would change
# the segments. ";" because servlet containers cut a segment there.
_RISKY_ESCAPE = re.compile(rb"%(?:2[efEF]|5[cC]|3[bB]|25|[01][0-9A-Fa-f]|7[fF])")


class InvalidPattern(ValueError):
    """A scope rule that cannot be matched; the message says why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    segments: tuple[bytes, ...]
    #: One or more further segments must follow.
    rest: bool


def parse_pattern(text: str) -> Pattern:
    """Return a rule's segments. Raises :class:`InvalidPattern`."""
    parts = text.strip().strip("/").split("/")
    rest = parts[-1] in _REST
    if rest:
        parts.pop()
    if not parts:
        raise InvalidPattern("A path rule needs at least one segment.")
    for part in parts:
        if not _SEGMENT.fullmatch(part) or not part.strip("."):
            raise InvalidPattern(f"{part!r} is not a plain path segment.")
    return Pattern(tuple(part.encode("ascii") for part in parts), rest)


def is_ambiguous(path: bytes) -> bool:
    """Whether a raw path below the base could mean another one to a server on its way."""
    if not _PLAIN_PATH.fullmatch(path):
        return True
    if b"%" in path:
        if _RISKY_ESCAPE.search(path):
            return True
        if any(len(escape) != 3 for escape in _ESCAPE.findall(path)):
            return True
    # One trailing slash is an empty last segment and harmless; any other empty segment may be merged away.
    segments = path.split(b"/")
    if segments[-1] == b"":
        segments.pop()
    # "..;" is ".." to servers that strip path parameters.
    return any(segment.partition(b";")[0] in (b"", b".", b"..") for segment in segments)


class ScopeTable:
    """The compiled rules of every scope. Immutable; a change makes a new table."""

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        """``rules``: pairs of scope and pattern. A pattern that does not parse opens nothing."""
        self._exact: dict[tuple[bytes, ...], set[str]] = {}
        self._below: dict[tuple[bytes, ...], set[str]] = {}
        for scope, text in rules:
            try:
                pattern = parse_pattern(text)
            except InvalidPattern:
                continue
            target = self._below if pattern.rest else self._exact
            target.setdefault(pattern.segments, set()).add(scope)
        self._longest = max((len(segments) for segments in self._below), default=0)
        self._cache: dict[bytes, bytes | None] = {}

    def scopes_of(self, path: bytes) -> bytes | None:
        """Return the restricted scopes that open a raw path as ``,one,two,``; ``None`` when it is ambiguous."""
        try:
            return self._cache[path]
        except KeyError:
            found = self._match(path)
            # Bounded, so that a caller who makes up paths costs no memory.
            if len(self._cache) >= 4096:
                self._cache.clear()
            if len(path) <= 512:
                self._cache[path] = found
            return found

    def _match(self, path: bytes) -> bytes | None:
        if is_ambiguous(path):
            return None
        segments = tuple(path.split(b"/"))
        if segments and segments[-1] == b"":
            segments = segments[:-1]
        scopes = set(self._exact.get(segments, ()))
        for length in range(1, min(self._longest, len(segments) - 1) + 1):
            scopes |= self._below.get(segments[:length], set())
        return ("," + "".join(f"{scope}," for scope in sorted(scopes))).encode("ascii")

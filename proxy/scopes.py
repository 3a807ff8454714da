"""Which scopes a path is open under, decided on the bytes that will be sent.

A rule names whole segments below the upstream's base path; a last segment ``…`` (or ``...``) stands for one or
more further segments. Only an unambiguous path is matched: one that some server on the way could read
differently than we did (dot segments, empty segments, encoded slashes, dots or backslashes, NUL) is refused
before matching, so that the bytes matched are the bytes meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

#: What a rule may name. HEAD follows GET; TRACE and CONNECT are not relayed at all.
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: The scope that needs no rules: everything passes byte for byte.
FULL = "full"

_REST = ("…", "...")
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")
# RFC 3986 §3.3: what may stand in a path. Anything else is read differently by different servers.
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@/%-]*")
_ESCAPE = re.compile(rb"%(?:[0-9A-Fa-f]{2})?")
_HIGH_ESCAPE = re.compile(rb"%[89a-fA-F]")
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
        if _HIGH_ESCAPE.search(path) and _is_disguised(unquote_to_bytes(path)):
            return True
    # One trailing slash is an empty last segment and harmless; any other empty segment may be merged away.
    segments = path.split(b"/")
    if segments[-1] == b"":
        segments.pop()
    # "..;" is ".." to servers that strip path parameters, ".. " and "..." to some that go by file names.
    return any(not segment.partition(b";")[0].replace(b"%20", b"").strip(b".") for segment in segments)


def _is_disguised(path: bytes) -> bool:
    """Whether some decoders find separators or dots in bytes that are none: overlong UTF-8, look-alikes of NFKC."""
    try:
        text = path.decode("utf-8")
    except UnicodeDecodeError:
        return True
    plain = unicodedata.normalize("NFKC", text)
    return any(text.count(mark) != plain.count(mark) for mark in "./\\;%?#")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a scope. ``method`` empty: any."""

    scope: str
    pattern: str
    method: str = ""
    deny: bool = False


@dataclass(slots=True)
class _Compiled:
    """The rules that concern one method, by the segments they name."""

    exact: dict[tuple[bytes, ...], set[str]] = field(default_factory=dict)
    below: dict[tuple[bytes, ...], set[str]] = field(default_factory=dict)
    longest: int = 0

    def add(self, rule: Rule, pattern: Pattern) -> None:
        chosen = self.below if pattern.rest else self.exact
        chosen.setdefault(pattern.segments, set()).add(rule.scope)
        if pattern.rest:
            self.longest = max(self.longest, len(pattern.segments))

    def scopes_of(self, segments: tuple[bytes, ...]) -> set[str]:
        scopes = set(self.exact.get(segments, ()))
        for length in range(1, min(self.longest, len(segments) - 1) + 1):
            scopes |= self.below.get(segments[:length], set())
        return scopes


class _OfMethod:
    """What one method is allowed and denied, and the answers given before."""

    __slots__ = ("allowed", "cache", "denied")

    def __init__(self) -> None:
        self.allowed, self.denied = _Compiled(), _Compiled()
        self.cache: dict[bytes, bytes | None] = {}


class ScopeTable:
    """The compiled rules of every scope. Immutable; a change makes a new table.

    A path is open under a scope when one of its rules allows it and none denies it, in whatever order they stand.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        """A pattern that does not parse opens nothing."""
        self.rules = list(rules)
        named = {rule.method for rule in self.rules if rule.method}
        if "GET" in named:
            named.add("HEAD")
        #: For a method that no rule names.
        self._any = _OfMethod()
        self._of_method = {method: _OfMethod() for method in named}
        for rule in self.rules:
            try:
                pattern = parse_pattern(rule.pattern)
            except InvalidPattern:
                continue
            for method, compiled in [("", self._any), *self._of_method.items()]:
                if applies(rule, method):
                    (compiled.denied if rule.deny else compiled.allowed).add(rule, pattern)

    def scopes_of(self, path: bytes, method: str) -> bytes | None:
        """Return the restricted scopes that open a raw path as ``,one,two,``; ``None`` when it is ambiguous."""
        compiled = self._of_method.get(method, self._any)
        try:
            return compiled.cache[path]
        except KeyError:
            found = self._match(path, compiled)
            # Bounded, so that a caller who makes up paths costs no memory.
            if len(compiled.cache) >= 4096:
                compiled.cache.clear()
            if len(path) <= 512:
                compiled.cache[path] = found
            return found

    def is_open(self, scope: str, path: bytes, method: str) -> bool:
        """Whether a scope opens a raw path."""
        return scope == FULL or f",{scope},".encode() in (self.scopes_of(path, method) or b"")

    def _match(self, path: bytes, compiled: _OfMethod) -> bytes | None:
        if is_ambiguous(path):
            return None
        segments = segments_of(path)
        scopes = compiled.allowed.scopes_of(segments) - compiled.denied.scopes_of(segments)
        return ("," + "".join(f"{scope}," for scope in sorted(scopes))).encode("ascii")

    def rules_for(self, scope: str, path: bytes, method: str) -> list[Rule]:
        """Return a scope's rules that match an unambiguous path, those that decide first."""
        segments = segments_of(path)
        found = []
        for rule in self.rules:
            if rule.scope != scope or not applies(rule, method):
                continue
            try:
                pattern = parse_pattern(rule.pattern)
            except InvalidPattern:
                continue
            length = len(pattern.segments)
            if (
                segments == pattern.segments
                if not pattern.rest
                else (len(segments) > length and segments[:length] == pattern.segments)
            ):
                found.append(rule)
        return sorted(found, key=lambda rule: not rule.deny)


def applies(rule: Rule, method: str) -> bool:
    """Whether a rule speaks of a method. What is allowed or denied for GET is so for HEAD (RFC 9110 §9.3.2)."""
    return rule.method in ("", method) or (rule.method == "GET" and method == "HEAD")


def segments_of(path: bytes) -> tuple[bytes, ...]:
    """Return the segments of an unambiguous path."""
    segments = tuple(path.split(b"/"))
    return segments[:-1] if segments[-1] == b"" else segments

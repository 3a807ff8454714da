"""Header hygiene both ways: what may pass, what is ours alone, and how the framing was declared.

RFC 9110 §7.6 (what a gateway must drop and add), RFC 9112 §6 (framing), RFC 7239 (Forwarded). Servers are
lenient about framing; what two of them read differently is how requests are smuggled, so the declared framing is
checked here and the upstream's is built anew, never copied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from accounts import selectors as accounts_selectors
from proxy.exceptions import MalformedAnswer, MalformedRequest
from zenzefi.lib.network import is_trusted_peer, resolve_client_address

RawHeaders = Sequence[tuple[bytes, bytes]]

#: How we appear in ``Via``.
PSEUDONYM = b"zenzefi-proxy"
#: Where clients see the upstream.
PUBLIC_PREFIX = "/api/v1/proxy"

(
    _PASS,
    _DROP,
    _BAD,
    _TOKEN,
    _DEVICE,
    _CONNECTION,
    _LENGTH,
    _CODING,
    _HOST,
    _EXPECT,
    _COOKIE,
    _AUTHORIZATION,
    _VIA,
    _FORWARDED_FOR,
    _FORWARDED_PROTO,
    _FORWARDED_HOST,
    _FORWARDED,
    _REQUEST_ID,
    _LANGUAGE,
    _AGENT,
    _ORIGIN,
    _ACCEPT,
    _ACCEPT_CODING,
    _EDGE,
    _EDGE_CONNECTION,
    _EDGE_FAILED,
    _HEEDED,
    _OVERRIDE,
    _TRACEPARENT,
    _TRACESTATE,
    _MAX_FORWARDS,
) = range(31)

_SPECIAL = {
    b"x-access-token": _TOKEN,
    b"x-device-id": _DEVICE,
    b"connection": _CONNECTION,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"host": _HOST,
    # The 100 is sent by us, when the body is asked for.
    b"expect": _EXPECT,
    b"cookie": _COOKIE,
    b"authorization": _AUTHORIZATION,
    b"via": _VIA,
    b"x-forwarded-for": _FORWARDED_FOR,
    b"x-forwarded-proto": _FORWARDED_PROTO,
    b"x-forwarded-host": _FORWARDED_HOST,
    b"forwarded": _FORWARDED,
    b"x-request-id": _REQUEST_ID,
    b"accept-language": _LANGUAGE,
    b"user-agent": _AGENT,
    b"origin": _ORIGIN,
    b"accept": _ACCEPT,
    b"accept-encoding": _ACCEPT_CODING,
    # What the carrier in front says of itself, see :mod:`proxy.edge`; from anybody else it counts for nothing.
    b"x-zenzefi-edge": _EDGE,
    b"x-zenzefi-edge-connection": _EDGE_CONNECTION,
    b"x-zenzefi-edge-failed": _EDGE_FAILED,
    b"traceparent": _TRACEPARENT,
    b"tracestate": _TRACESTATE,
    b"max-forwards": _MAX_FORWARDS,
}
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
# Ours to say, nobody else's: who asks, from where, and for which address.
_OURS_UPSTREAM = frozenset(
    {
        *(b"x-user-id", b"x-token-id", b"x-remote-user", b"remote-user"),
        *(b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cluster-client-ip", b"x-cluster-client-ip"),
        *(b"x-proxyuser-ip", b"cf-connecting-ip", b"fastly-client-ip", b"x-remote-ip", b"x-remote-addr"),
        *(b"x-forwarded", b"x-rewrite-url", b"x-http-host-override", b"x-host"),
    }
)
#: Headers that never reach the upstream and mean nothing to us: whoever carries a request in our place leaves them
#: out by name (:mod:`proxy.edge_config`). Any other one that is dropped makes a request ours to carry.
LEFT_OUT = frozenset(
    {
        *_OURS_UPSTREAM,
        *(b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"http2-settings"),
        *(b"x-forwarded-port", b"x-forwarded-server", b"x-forwarded-prefix", b"x-forwarded-ssl", b"x-forwarded-scheme"),
        *(b"x-original-url", b"x-original-uri", b"x-original-host", b"x-original-for", b"x-original-forwarded-for"),
    }
)
# By these a server may act on another method than the request's; no RFC has them, many frameworks do.
_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_TOKEN_CHARS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_DEVICE_ID = re.compile(rb"[\x21-\x7e]{8,255}")
_HOST_VALUE = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_ID = re.compile(rb"[A-Za-z0-9._~-]{8,128}")
_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})

_kinds: dict[bytes, int] = dict(_SPECIAL)
#: Values of ``Host`` that were looked at before; most requests have one of a few. Bounded, as they are the caller's.
_hosts: set[bytes] = set()


def _classify(name: bytes) -> int:
    """Return what to do with a request header, remembered for the next request that has it."""
    if not _TOKEN_CHARS.fullmatch(name):
        return _BAD
    # Many servers read X_User_Id and X-User-Id as one; an underscore form of ours must not stand beside it.
    plain = name.lower().replace(b"_", b"-")
    ours = plain in _SPECIAL or plain in _OURS_UPSTREAM or plain.startswith((b"x-forwarded-", b"x-original-"))
    kind = _SPECIAL.get(name, _DROP) if ours or plain in _HOP_BY_HOP else _PASS
    if kind == _DROP and name not in LEFT_OUT:
        kind = _HEEDED
    if plain in _OVERRIDES:
        kind = _OVERRIDE
    # Bounded: names are the caller's choice.
    if len(_kinds) < 2048:
        _kinds[name] = kind
    return kind


class Incoming:
    """A request's head as the gateway needs it, read in one pass."""

    # Defaults stand in the class: most requests have few of these.
    token = device = host = connection = via = b""
    forwarded_for = forwarded_proto = forwarded_host = forwarded = b""
    request_id = accept_language = user_agent = origin = accept = accept_coding = traceparent = tracestate = b""
    #: Of the carrier in front, unproved.
    edge = edge_connection = edge_failed = b""
    tokens = device_seen = hosts = lengths = codings = traceparents = 0
    length: int | None = None
    chunked = expects_continue = False
    #: Of ``Max-Forwards``, which is no line yet: for OPTIONS it counts.
    max_forwards = b""
    #: Something was left out of the lines that only we know to leave out.
    cleansed = False
    #: Methods that the server might act on instead of the request's own.
    overrides: tuple[bytes, ...] = ()

    def __init__(self) -> None:
        #: Header lines that may reach the upstream.
        self.lines: list[bytes] = []

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)

    def means_another_method(self, method: str) -> bool:
        """Whether a field asks the server to take the request for one of another method."""
        own = method.encode("ascii")
        return any(value.strip(b" \t").upper() not in (own, b"") for value in self.overrides)


def read_request(headers: RawHeaders, http_version: str) -> Incoming:
    """Read a request's header section, keeping the lines that may reach the upstream.

    Raises :class:`~proxy.exceptions.MalformedRequest` for a section that two servers could read differently.
    """
    found = Incoming()
    lines = found.lines
    kinds = _kinds
    bad = _BAD_VALUE.search
    for name, value in headers:
        kind = kinds.get(name)
        if kind is None:
            kind = _classify(name)
        if bad(value):
            raise MalformedRequest("control character in a header")
        if kind == _PASS:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif kind == _AGENT:
            found.user_agent = value
            lines.append(b"user-agent: %b\r\n" % value)
        elif kind == _HOST:
            found.host = value.strip(b" \t")
            found.hosts += 1
        elif kind == _TOKEN:
            found.token = value
            found.tokens += 1
        elif kind == _DEVICE:
            found.device = value
            found.device_seen += 1
        elif kind == _ACCEPT:
            found.accept = value
            lines.append(b"accept: %b\r\n" % value)
        elif kind == _ACCEPT_CODING:
            found.accept_coding = value
            lines.append(b"accept-encoding: %b\r\n" % value)
        elif kind == _LANGUAGE:
            found.accept_language = value
            lines.append(b"accept-language: %b\r\n" % value)
        elif kind == _CONNECTION:
            found.connection = found.connection + b"," + value if found.connection else value
        elif kind == _LENGTH:
            found.lengths += 1
            value = value.strip(b" \t")
            if not value.isdigit() or len(value) > 18:
                raise MalformedRequest("Content-Length is not a number")
            found.length = int(value)
        elif kind == _CODING:
            found.codings += 1
            if value.strip(b" \t").lower() != b"chunked":
                raise MalformedRequest("Transfer-Encoding is not chunked")
            found.chunked = True
        elif kind == _EXPECT:
            if value.lower() == b"100-continue":
                found.expects_continue = True
        elif kind == _COOKIE:
            kept = _without_our_cookies(value)
            if kept is not value:
                found.cleansed = True
            if kept:
                lines.append(b"cookie: %b\r\n" % kept)
        elif kind == _AUTHORIZATION:
            if _is_our_authorization(value):
                found.cleansed = True
            else:
                lines.append(b"authorization: %b\r\n" % value)
        elif kind == _VIA:
            found.via = found.via + b", " + value if found.via else value
        elif kind == _FORWARDED_FOR:
            found.forwarded_for = found.forwarded_for + b", " + value if found.forwarded_for else value
        elif kind == _FORWARDED_PROTO:
            found.forwarded_proto = value
        elif kind == _FORWARDED_HOST:
            found.forwarded_host = value
        elif kind == _FORWARDED:
            found.forwarded = found.forwarded + b", " + value if found.forwarded else value
        elif kind == _REQUEST_ID:
            found.request_id = value
        elif kind == _ORIGIN:
            found.origin = value
            lines.append(b"origin: %b\r\n" % value)
        elif kind == _EDGE:
            found.edge = value
        elif kind == _HEEDED:
            found.cleansed = True
        elif kind == _EDGE_CONNECTION:
            found.edge_connection = value
        elif kind == _EDGE_FAILED:
            found.edge_failed = value
        elif kind == _OVERRIDE:
            found.overrides = (*found.overrides, value)
            lines.append(b"%b: %b\r\n" % (name, value))
        elif kind == _MAX_FORWARDS:
            found.max_forwards = value.strip(b" \t")
            found.cleansed = True
        elif kind == _TRACEPARENT:
            found.traceparent = value.strip(b" \t")
            found.traceparents += 1
        elif kind == _TRACESTATE:
            if value := value.strip(b" \t"):
                found.tracestate = found.tracestate + b"," + value if found.tracestate else value
        elif kind == _BAD:
            raise MalformedRequest("a header name is not a token")
    if found.lengths + found.codings > 1:
        raise MalformedRequest("the length of the body is declared more than once")
    if found.hosts != 1 and (found.hosts > 1 or http_version != "1.0"):
        raise MalformedRequest("exactly one Host is needed")
    if found.host not in _hosts:
        if not _HOST_VALUE.fullmatch(found.host):
            raise MalformedRequest("Host is not a host")
        if len(_hosts) < 256:
            _hosts.add(found.host)
    if found.chunked and http_version == "1.0":
        raise MalformedRequest("HTTP/1.0 has no Transfer-Encoding")
    if found.connection and found.connection not in _PLAIN_CONNECTION:
        drop_named_in_connection(found)
    return found


def drop_named_in_connection(found: Incoming) -> None:
    """RFC 9110 §7.6.1: a header that Connection names is for this hop only."""
    named = {option.strip().lower() for option in found.connection.split(b",")}
    named -= {b"close", b"keep-alive", b"upgrade", b"te", b""}
    if named:
        found.cleansed = True
        found.lines[:] = [line for line in found.lines if line.partition(b":")[0].lower() not in named]
    if b"tracestate" in named:
        found.tracestate = b""


def is_device_id(value: bytes) -> bool:
    """Whether the value is 8-255 visible ASCII characters."""
    return _DEVICE_ID.fullmatch(value) is not None


def is_request_id(value: bytes) -> bool:
    """Whether a caller's ``X-Request-ID`` may be kept: 8-128 unreserved characters."""
    return _ID.fullmatch(value) is not None


def _without_our_cookies(value: bytes) -> bytes:
    """Return a Cookie header without the control plane's own cookies, which the upstream must not see."""
    ours = (settings.SESSION_COOKIE_NAME.encode(), settings.CSRF_COOKIE_NAME.encode(), b"messages")
    if not any(name in value for name in ours):
        return value
    pairs = [pair.strip() for pair in value.split(b";")]
    return b"; ".join(pair for pair in pairs if pair and pair.partition(b"=")[0].strip() not in ours)


def _is_our_authorization(value: bytes) -> bool:
    """Whether the credentials are the control plane's: an API key, or a bearer token that we signed."""
    scheme, _, credentials = value.partition(b" ")
    scheme = scheme.lower()
    if scheme == b"api-key":
        return True
    if scheme != b"bearer" or credentials.count(b".") != 2:
        return False
    return accounts_selectors.is_access_token(credentials.strip().decode("latin-1"))


# --- what we tell the upstream


_VIA_LINE = b"via: 1.1 %b\r\n" % PSEUDONYM
_VIA_FIELD = (b"via", b"1.1 " + PSEUDONYM)


class Forwarding:
    """The lines that tell the upstream who asked, kept for the callers and hosts seen last."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, bytes, str], tuple[str, bytes]] = {}
        # By everything that trusted proxies said.
        self._told: dict[tuple[Any, ...], tuple[str, bytes]] = {}
        self._trusts_somebody = bool(settings.TRUSTED_PROXIES)

    def of(self, peer: str, scheme: str, found: Incoming) -> tuple[str, bytes]:
        """Return the caller's address (empty when unknown) and the header lines.

        What the request says of itself counts only when its peer is a configured proxy.
        """
        if not self._trusts_somebody:
            return self._direct(peer, scheme, found)
        told = (
            *(peer, found.host, scheme, found.forwarded_for, found.forwarded_proto, found.forwarded_host),
            *(found.forwarded, found.via),
        )
        known = self._told.get(told)
        if known is None:
            if not is_trusted_peer(peer):
                return self._direct(peer, scheme, found)
            if len(self._told) >= 4096:
                self._told.clear()
            known = self._told[told] = self._relayed(*told)
        return known

    def _direct(self, peer: str, scheme: str, found: Incoming) -> tuple[str, bytes]:
        address, lines = self._remember(peer, scheme, found.host)
        return address, b"%bvia: %b, 1.1 %b\r\n" % (lines, found.via, PSEUDONYM) if found.via else lines + _VIA_LINE

    @staticmethod
    def _relayed(
        peer: str,
        host: bytes,
        scheme: str,
        chain: bytes,
        proto: bytes,
        public_host: bytes,
        forwarded: bytes,
        via: bytes,
    ) -> tuple[str, bytes]:
        """Return the same for a request that a trusted proxy passes on."""
        address = resolve_client_address(peer, chain.decode("latin-1"))
        proto = proto.lower() if proto.lower() in (b"http", b"https") else scheme.encode()
        hop = b"for=%b;host=%b;proto=%b" % (_node(peer), _quoted(host), scheme.encode())
        return address, (
            b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\nforwarded: %b\r\nvia: %b\r\n"
            % (
                b"%b, %b" % (chain, peer.encode()) if chain else peer.encode(),
                proto,
                public_host or host,
                b"%b, %b" % (forwarded, hop) if forwarded else hop,
                b"%b, 1.1 %b" % (via, PSEUDONYM) if via else b"1.1 %b" % PSEUDONYM,
            )
        )

    def _remember(self, peer: str, scheme: str, host: bytes) -> tuple[str, bytes]:
        key = (peer, host, scheme)
        known = self._lines.get(key)
        if known is None:
            address = resolve_client_address(peer, "")
            who = (address or "unknown").encode()
            proto = scheme.encode()
            known = (
                address,
                b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\nforwarded: %b\r\n"
                % (who, proto, host, b"for=%b;host=%b;proto=%b" % (_node(address), _quoted(host), proto)),
            )
            if len(self._lines) >= 4096:
                self._lines.clear()
            self._lines[key] = known
        return known


def _node(address: str) -> bytes:
    """Return an address as RFC 7239 §6 has it."""
    if not address:
        return b"unknown"
    return b'"[%b]"' % address.encode() if ":" in address else address.encode()


def _quoted(host: bytes) -> bytes:
    return b'"%b"' % host


# --- what the client gets

_DROPPED_ANSWER = _HOP_BY_HOP | {
    # Ours to say.
    b"x-zenzefi-error",
    b"x-request-id",
    b"ratelimit",
    b"ratelimit-policy",
    # It would send the client to the upstream's own HTTP/3 port, around us.
    b"alt-svc",
    # Orders to an nginx in front of us, which would act on them: serve another address, a file, at another speed.
    b"x-accel-redirect",
    b"x-accel-buffering",
    b"x-accel-charset",
    b"x-accel-expires",
    b"x-accel-limit-rate",
}
_ANSWER_PASS, _ANSWER_DROP, _ANSWER_LENGTH, _ANSWER_ENCODING, _ANSWER_LOCATION, _ANSWER_COOKIE, _ANSWER_VIA = range(7)
_ANSWER_CONNECTION, _ANSWER_TYPE, _ANSWER_CORS, _ANSWER_CODING = 7, 8, 9, 10
_ANSWER_SPECIAL = {
    b"content-length": _ANSWER_LENGTH,
    b"content-encoding": _ANSWER_ENCODING,
    b"location": _ANSWER_LOCATION,
    b"content-location": _ANSWER_LOCATION,
    b"set-cookie": _ANSWER_COOKIE,
    b"via": _ANSWER_VIA,
    b"connection": _ANSWER_CONNECTION,
    b"transfer-encoding": _ANSWER_CODING,
    b"content-type": _ANSWER_TYPE,
    b"access-control-allow-origin": _ANSWER_CORS,
    b"access-control-allow-credentials": _ANSWER_CORS,
    b"access-control-expose-headers": _ANSWER_CORS,
}
_answer_kinds: dict[bytes, int] = {}


def _classify_answer(name: bytes) -> int:
    lower = name.lower()
    kind = _ANSWER_SPECIAL.get(lower)
    if kind is None:
        kind = _ANSWER_DROP if lower in _DROPPED_ANSWER else _ANSWER_PASS
    if len(_answer_kinds) < 2048:
        _answer_kinds[name] = kind
    return kind


class Outgoing:
    """An upstream answer's head, ready for the client."""

    __slots__ = ("chunked", "encoded", "headers", "is_event_stream", "length")

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: bytes | None = None
        self.encoded = self.chunked = False
        self.is_event_stream = False


def read_answer(raw: RawHeaders, rewriter: Rewriter, *, drop_cors: bool) -> Outgoing:
    """Read an upstream answer's header section, keeping what the client may see, in its order.

    Raises :class:`~proxy.exceptions.MalformedAnswer` for a section that cannot be handed on.
    """
    out = Outgoing()
    headers = out.headers
    connection = b""
    via = b""
    for name, value in raw:
        kind = _answer_kinds.get(name)
        if kind is None:
            kind = _classify_answer(name)
        if kind == _ANSWER_PASS:
            headers.append((name, value))
        elif kind == _ANSWER_LENGTH:
            out.length = value.strip()
        elif kind == _ANSWER_TYPE:
            headers.append((name, value))
            out.is_event_stream = value[:17].lower() == b"text/event-stream"
        elif kind == _ANSWER_ENCODING:
            headers.append((name, value))
            out.encoded = value.strip().lower() not in (b"", b"identity")
        elif kind == _ANSWER_LOCATION:
            headers.append((name, rewriter.location(value)))
        elif kind == _ANSWER_COOKIE:
            headers.append((name, rewriter.cookie(value)))
        elif kind == _ANSWER_VIA:
            via = via + b", " + value if via else value
        elif kind == _ANSWER_CONNECTION:
            connection += b"," + value
        elif kind == _ANSWER_CODING:
            # We ask for no coding, and what it does to the body could not be told to the client.
            if out.chunked or value.strip(b" \t").lower() != b"chunked":
                raise MalformedAnswer("its transfer coding is not chunked")
            out.chunked = True
        elif kind == _ANSWER_CORS and not drop_cors:
            headers.append((name, value))
    if connection and connection[1:] not in _PLAIN_CONNECTION:
        named = {option.strip().lower() for option in connection.split(b",")}
        named -= {b"close", b"keep-alive", b"upgrade", b""}
        if named:
            headers[:] = [pair for pair in headers if pair[0].lower() not in named]
    headers.append((b"via", b"%b, 1.1 %b" % (via, PSEUDONYM)) if via else _VIA_FIELD)
    return out


class Rewriter:
    """Turns what an upstream says of its own addresses into ours."""

    def __init__(self, targets: Sequence[str]) -> None:
        parts = [urlsplit(target) for target in targets]
        self._origins = {_origin(part.scheme, part.hostname or "", part.port) for part in parts}
        self._hosts = {(part.hostname or "").lower() for part in parts}
        self._base = parts[0].path.rstrip("/") if parts else ""

    def location(self, value: bytes) -> bytes:
        """Return a ``Location`` that stays on our side when it points at the upstream."""
        text = value.decode("latin-1").strip()
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            return value
        if parts.netloc:
            if not any(
                _origin(scheme, parts.hostname or "", port) in self._origins
                for scheme in ((parts.scheme,) if parts.scheme else ("http", "https"))
            ):
                return value
            _, _, after = text.partition("//")
            path = after[len(parts.netloc) :]
            if not path.startswith("/"):
                path = "/" + path
        elif not parts.scheme and text.startswith("/"):
            path = text
        else:
            # Relative to the request, whose path has the same shape on both sides.
            return value
        return (self._public(path) or text).encode("latin-1")

    def _public(self, path: str) -> str | None:
        """Return the public form of an upstream path with its query; ``None`` when it lies outside our base."""
        if not self._base:
            return PUBLIC_PREFIX + path
        if path == self._base or path.startswith((self._base + "/", self._base + "?", self._base + "#")):
            return PUBLIC_PREFIX + path[len(self._base) :]
        return None

    def cookie(self, value: bytes) -> bytes:
        """Return a ``Set-Cookie`` whose Domain and Path fit our address."""
        if b";" not in value:
            return value
        pair, *attributes = value.decode("latin-1").split(";")
        # RFC 6265bis §4.1.3.2: such a cookie is refused unless its Path is "/".
        host_bound = pair.strip().lower().startswith("__host-")
        kept = [pair]
        for attribute in attributes:
            name, _, content = attribute.partition("=")
            name, content = name.strip().lower(), content.strip()
            if name == "domain" and self._is_upstream_domain(content):
                continue
            if name == "path" and content.startswith("/") and not host_bound:
                public = PUBLIC_PREFIX if content in ("/", self._base + "/") else self._public(content)
                kept.append(" Path=" + (public or content))
                continue
            kept.append(attribute)
        return ";".join(kept).encode("latin-1")

    def _is_upstream_domain(self, domain: str) -> bool:
        domain = domain.lstrip(".").lower()
        return any(host == domain or host.endswith("." + domain) for host in self._hosts)


def _origin(scheme: str, host: str, port: int | None) -> tuple[str, str, int]:
    scheme = {"ws": "http", "wss": "https"}.get(scheme.lower(), scheme.lower())
    return scheme, host.lower(), port or (443 if scheme == "https" else 80)

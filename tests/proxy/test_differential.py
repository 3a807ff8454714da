"""The same request straight to the upstream and through the gateway: both sides see the same, but for what
docs/gateway.md lists. Each case is a line of data; one test compares everything both ends saw.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
from dataclasses import dataclass
from http import HTTPStatus
from itertools import product

import pytest

from tests.proxy.mirror import OK, Got, Headers, Mirror, Seen, Wire

# The gateway's threads see what is committed; the mark is what makes a database exist.
pytestmark = pytest.mark.django_db

HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"),
    *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"),
}
#: Said by the gateway, whatever the client said.
OURS_UPSTREAM = {
    *(b"host", b"via", b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip"),
    *(b"x-request-id", b"x-user-id", b"x-token-id", b"x-access-token", b"x-device-id", b"expect", b"max-forwards"),
    *(b"traceparent", b"tracestate"),
}
#: Said by the gateway, whatever the upstream said.
OURS_DOWN = {b"via", b"x-request-id", b"x-zenzefi-error", b"ratelimit", b"ratelimit-policy", b"alt-svc"}
#: What it says of its own times, behind what the upstream says of its own.
TIMING = re.compile(rb"auth;dur=\d+\.\d\d, upstream;dur=\d+\.\d\d, total;dur=\d+\.\d\d")


@dataclass(frozen=True)
class Case:
    name: str
    method: bytes = b"GET"
    target: bytes = b""
    headers: bytes = b""
    body: bytes = b""
    answer: bytes = OK
    #: The upstream hangs up after its answer, whose end that is.
    close: bool = False


def head(status: int, *fields: bytes, reason: bytes = b"Said So") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 %d %b" % (status, reason), *fields, b"", b""])


def with_length(status: int, body: bytes, *fields: bytes) -> bytes:
    return head(status, *fields, b"Content-Length: %d" % len(body)) + body


def chunked(*pieces: bytes, fields: tuple[bytes, ...] = (), end: bytes = b"0\r\n\r\n", status: int = 200) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head(status, *fields, b"Transfer-Encoding: chunked") + body + end


METHODS = (
    *(b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"PROPPATCH", b"MKCOL", b"COPY"),
    *(b"MOVE", b"LOCK", b"UNLOCK", b"REPORT", b"SEARCH", b"PURGE", b"NOTIFY", b"SUBSCRIBE", b"LINK", b"MERGE", b"BIND"),
)

TARGETS = (
    b"",
    b"/",
    b"//",
    b"/a//b///c",
    b"/.",
    b"/..",
    b"/a/../b",
    b"/a/./b/",
    b"/%2e%2e/b",
    b"/%2E%2e%2F",
    b"/%2f%5c%00",
    b"/%20%09%0d%0a",
    b"/%zz%",
    b"/%D0%BF%d1%80",
    b"/a;b=c;d",
    b"/a:b@c",
    b"/a+b%2Bc",
    b"/a~b-c_d.e",
    b"/(a)!$&'*,=",
    b'/[a]{b}|c^`\\"<>',
    b"/" + b"x" * 8000,
    b"?&&==&",
    b"?a=1&a=2&b=&c",
    b"?b=2&a=1",
    b"?a=%20+%2B%26%3d",
    b"?q=a/../b//c",
    b"?u=http://evil.example/?x=y",
    b"?a?b?c",
    b"?%zz%&[]{}|^`",
    b"?sid=;sep;x=1",
    b"?" + b"y" * 8000,
)

REQUEST_FIELDS = (
    b"Accept: text/html;q=0.9, */*;q=0.1\r\n",
    b"Accept-Encoding: gzip, br, zstd;q=0.5, identity;q=0\r\n",
    b"Accept-Language: ru, en;q=0.5\r\n",
    b"User-Agent: Mozilla/5.0 (odd; \xe9)\r\n",
    b"X-Empty:\r\n",
    b"X-Spaces:  \t padded \t \r\n",
    b"X-Tab: a\tb\r\n",
    b"X-Latin: caf\xe9 \xff\xfe\r\n",
    b"X-Many: 1\r\nX-Other: x\r\nx-many: 2\r\nX-MANY: 3\r\n",
    b"!#$%&'*+.^_`|~0-odd: name\r\n",
    b"X-Long: " + b"v" * 30_000 + b"\r\n",
    b"".join(b"X-N%d: %d\r\n" % (n, n) for n in range(150)),
    b"Cookie: a=1; b=2\r\nCookie: c=3\r\n",
    b'Cookie: odd; =x; a==; "q"=1\r\n',
    b"Authorization: Basic dXNlcjpwYXNz\r\n",
    b"Authorization: Negotiate YII=\r\n",
    b"Referer: http://x.example/a?b#c\r\nOrigin: null\r\n",
    b'Pragma: no-cache\r\nCache-Control: max-age=0, private="a,b"\r\n',
    b'Content-Type: multipart/form-data; boundary="a b"\r\n',
    b"Content-Encoding: br\r\nContent-Language: ru\r\nContent-Location: /x\r\n",
    b"From: a@b.example\r\nDNT: 1\r\nSec-Fetch-Mode: cors\r\nPriority: u=1, i\r\n",
    b"Digest: sha-256=abc=\r\nContent-MD5: x\r\nSignature: sig1=:YQ==:\r\n",
    b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",
    b"Connection: X-Hop, close\r\nX-Hop: gone\r\nX-Kept: here\r\n",
    b"Connection: x-one\r\nConnection: , X-TWO ,\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n",
    b"TE: trailers\r\nConnection: TE\r\n",
    b"Proxy-Authorization: Basic x\r\nProxy-Connection: close\r\n",
    b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nTracestate: a=b\r\n",
    b"Tracestate: of=no-trace\r\nTraceparent: 00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01\r\n",
    # Conditional and range requests are the upstream's to judge.
    b'If-None-Match: "a", W/"b", *\r\n',
    b"If-Match: *\r\n",
    b"If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT\r\n",
    b"If-Unmodified-Since: nonsense\r\n",
    b"Range: bytes=0-0\r\n",
    b"Range: bytes=-5\r\n",
    b"Range: bytes=5-\r\n",
    b"Range: bytes=0-1, 3-4,6-\r\n",
    b"Range: bytes=9-1\r\n",
    b"Range: furlongs=1-2\r\n",
    b'Range: bytes=1-2\r\nIf-Range: "v1"\r\n',
    b"Range: bytes=1-2\r\nIf-Range: Sat, 29 Oct 1994 19:43:31 GMT\r\n",
)

#: Fields of an answer that a gateway without a cache hands on as they are, most of them because caches act on them.
ANSWER_FIELDS: tuple[tuple[bytes, ...], ...] = (
    (b"Cache-Control: max-age=3600, s-maxage=1, must-revalidate",),
    (b"Cache-Control: no-store", b"Cache-Control: private", b"Pragma: no-cache"),
    (b'cache-control: stale-while-revalidate=1, extension="a, b"',),
    (b"Expires: 0",),
    (b"Expires: Thu, 18 Aug 2050 02:01:18 GMT", b"Date: Thu, 18 Aug 2000 02:01:18 GMT"),
    (b"Age: 100",),
    (b"Age: 7200, 0", b'Warning: 110 - "stale"'),
    (b"Vary: *",),
    (b"Vary: Foo, Bar", b"Vary: Baz"),
    (b'ETag: "abc"',),
    (b'ETag: W/"abc"',),
    (b"ETag: unquoted",),
    (b"Last-Modified: Sat, 29 Oct 1994 19:43:31 GMT",),
    (b"Surrogate-Control: max-age=1", b"CDN-Cache-Control: max-age=2"),
    (b"Cache-Status: up; hit", b"Proxy-Status: up; error=x"),
    (b'Clear-Site-Data: "cache"', b"Refresh: 1; url=/x"),
    (b"Set-Cookie: a=1", b"Set-Cookie: b=2; HttpOnly", b"Set-Cookie: a=3; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
    tuple(b"Set-Cookie: c%d=%d; Max-Age=1" % (n, n) for n in range(60)),
    (b"Set-Cookie2: old", b"Set-Cookie: =odd;;; x"),
    (b"Server: Zen/1.0 (x)", b"X-Powered-By: y"),
    (b'Content-Type: text/plain; charset="utf-8"', b"Content-Language: ru, en"),
    (b"Content-Disposition: attachment; filename*=UTF-8''%d1%8f.pem",),
    (b"Content-Security-Policy: default-src 'none'", b"Strict-Transport-Security: max-age=1", b"X-Frame-Options: DENY"),
    (b'WWW-Authenticate: Basic realm="x"', b"WWW-Authenticate: Negotiate"),
    (b"Link: </a>; rel=preload", b"Link: </b>; rel=next"),
    (b"Location: relative/path?x#y",),
    (b"Location: https://elsewhere.example/a%2Fb?c=d#e",),
    (b"Retry-After: 120", b"Allow: GET, PROPFIND"),
    (b"X-Empty:", b"X-Tab: a\tb", b"X-Latin: caf\xe9"),
    (b"X-Many: 1", b"x-other: o", b"x-many: 2"),
    (b"X-Long: " + b"v" * 40_000,),
    tuple(b"X-N%d: %d" % (n, n) for n in range(400)),
    (b"Connection: keep-alive, X-Hop", b"X-Hop: gone", b"Keep-Alive: timeout=9, max=3", b"X-Kept: 1"),
    (b"Proxy-Authenticate: Basic", b"Upgrade: h2c", b"Trailer: X-T"),
    (b"Accept-Ranges: bytes", b"Access-Control-Allow-Origin: *"),
    (b'Server-Timing: miss, db;dur=53, app;dur=47.2;desc="a, b"', b"X-Between: 1", b"server-timing: total;dur=1"),
    (b"Timing-Allow-Origin: https://a.example", b"Traceparent: odd", b"Traceresponse: 00-x-y-01"),
)

ENCODED = gzip.compress(b"plain text " * 50, mtime=0)


def cases() -> list[Case]:
    bare = head(200, b"Content-Length: 2")
    found = [
        Case(f"method {method.decode()}", method=method, answer=bare if method == b"HEAD" else OK) for method in METHODS
    ]
    found += [
        Case(f"method {method.decode()} with a body", method=method, headers=b"Content-Length: 4\r\n", body=b"body")
        for method in METHODS
        if method != b"HEAD"
    ]
    found += [Case(f"target {number}: {target[:20]!r}", target=target) for number, target in enumerate(TARGETS)]
    found += [
        Case(f"request field {number}: {field[:24]!r}", headers=field) for number, field in enumerate(REQUEST_FIELDS)
    ]
    for size, method in product((0, 1, 1000, 70_000, 1_000_000), (b"POST", b"PUT")):
        body = bytes(range(256)) * (size // 256 + 1)
        body = body[:size]
        found.append(Case(f"{method.decode()} {size}", method, headers=b"Content-Length: %d\r\n" % size, body=body))
        pieces = [body[at : at + 9999] for at in range(0, size, 9999)]
        encoded = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        coding = b"Transfer-Encoding: chunked\r\n"
        found.append(Case(f"{method.decode()} {size} in chunks", method, headers=coding, body=encoded))
    found += [
        Case(
            "chunk extensions and trailers",
            b"POST",
            headers=b"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n",
            body=b'3;a=b;c="d e"\r\nabc\r\n0003\r\ndef\r\n000\r\nX-T: 1\r\n\r\n',
        ),
        Case(
            "the client waits for 100",
            b"PUT",
            headers=b"Expect: 100-continue\r\nContent-Length: 4\r\n",
            body=b"body",
        ),
    ]
    statuses = [*range(200, 209), 226, *range(300, 309), *range(400, 430), 431, 451, 499, *range(500, 512), 520, 599]
    for status in statuses:
        bodyless = status in (204, 304)
        found.append(Case(f"status {status}", answer=head(status) if bodyless else with_length(status, b"a body")))
    for status in (200, 205, 302, 404, 416, 500, 503):
        found.append(Case(f"status {status} empty", answer=with_length(status, b"")))
        found.append(Case(f"status {status} chunked", answer=chunked(b"one", b"two", status=status)))
        found.append(Case(f"HEAD {status}", b"HEAD", answer=head(status, b"Content-Length: 123456")))
    found += [
        Case(f"answer field {number}: {fields[0][:24]!r}", answer=with_length(200, b"ok", *fields))
        for number, fields in enumerate(ANSWER_FIELDS)
    ]
    for coding in (b"gzip", b"br", b"zstd", b"deflate", b"identity", b"gzip, br", b"x-unknown"):
        name = f"encoding {coding.decode()}"
        found.append(Case(name, answer=with_length(200, ENCODED, b"Content-Encoding: " + coding)))
        found.append(Case(f"{name} chunked", answer=chunked(ENCODED, fields=(b"Content-Encoding: " + coding,))))
        found.append(
            Case(f"{name} HEAD", b"HEAD", answer=head(200, b"Content-Encoding: " + coding, b"Content-Length: 9"))
        )
    part = (b"Content-Range: bytes 0-1/10", b'ETag: "v1"')
    found += [
        Case("206", headers=b"Range: bytes=0-1\r\n", answer=with_length(206, b"ab", *part)),
        Case("206 chunked", headers=b"Range: bytes=0-1\r\n", answer=chunked(b"ab", fields=part, status=206)),
        Case(
            "206 multipart",
            headers=b"Range: bytes=0-1,4-5\r\n",
            answer=with_length(206, b"--b\r\n\r\nab\r\n--b--", b"Content-Type: multipart/byteranges; boundary=b"),
        ),
        Case("206 nobody asked for", answer=with_length(206, b"ab", *part)),
        Case("416", headers=b"Range: bytes=99-\r\n", answer=with_length(416, b"", b"Content-Range: bytes */10")),
        Case("200 to a range", headers=b"Range: bytes=0-1\r\n", answer=with_length(200, b"0123456789")),
        Case(
            "304 with fields",
            headers=b'If-None-Match: "a"\r\n',
            answer=head(304, b'ETag: "a"', b"Expires: 0", b"Vary: X"),
        ),
        Case("304 with a length", answer=head(304, b"Content-Length: 500")),
        Case("412", headers=b'If-Match: "b"\r\n', answer=with_length(412, b"no", b'ETag: "a"')),
        Case("one byte a chunk", answer=chunked(*[bytes([n]) for n in range(256)])),
        Case("chunk extension", answer=head(200, b"Transfer-Encoding: chunked") + b"3;x=y\r\nabc\r\n0\r\n\r\n"),
        Case("trailers", answer=chunked(b"abc", fields=(b"Trailer: X-T",), end=b"0\r\nX-T: 1\r\n\r\n")),
        Case("a megabyte", answer=with_length(200, bytes(range(256)) * 4096)),
        Case("a megabyte in chunks", answer=chunked(*[bytes(range(256)) * 64] * 64)),
        Case("until the end", answer=head(200) + b"until the end", close=True),
        Case("until the end, HTTP/1.0", answer=b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nold", close=True),
        Case("length and close", answer=with_length(200, b"abc", b"Connection: close"), close=True),
        Case("100 before", answer=head(100) + OK),
        Case("103 before", answer=head(103, b"Link: </x>") + head(103) + OK),
        Case("102 before", answer=head(102) + OK),
        Case("100, 103 and 199 before", answer=head(100) + head(103, b"Link: </x>") + head(199, b"X-A: 1") + OK),
        Case("103 before, to HEAD", b"HEAD", answer=head(103, b"Link: </x>") + bare),
        Case("103 before, to POST", b"POST", headers=b"Content-Length: 4\r\n", body=b"body", answer=head(103) + OK),
        Case("103 before 304", answer=head(103, b"Link: </x>") + head(304, b'ETag: "a"')),
        *(Case(f"103 with {fields[0][:24]!r}", answer=head(103, *fields) + OK) for fields in ANSWER_FIELDS),
        Case("no reason", answer=b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok"),
        Case("odd reason", answer=b"HTTP/1.1 200 Tout \xe9t\xe9\r\nContent-Length: 2\r\n\r\nok"),
        Case(
            "event stream", answer=chunked(b"data: 1\n\n", b"data: 2\n\n", fields=(b"Content-Type: text/event-stream",))
        ),
    ]
    return found


CASES = cases()


def test_there_are_enough_cases():
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


def exchange(wire: Wire, case: Case, request: bytes) -> Got:
    wire.send(request)
    # After an early answer to its head a client would not send the rest; none of these has one.
    return wire.read(case.method)


def ask_directly(mirror: Mirror, case: Case, key: bytes) -> Got:
    """Have the upstream answer as the case says, and ask it without anything between."""
    if case.close:

        async def answer_and_close(peer):
            await peer.send(case.answer)
            return False

        mirror.answers[key.decode()] = answer_and_close
    else:
        mirror.answers[key.decode()] = case.answer
    mirror.clear()
    with Wire(mirror.port) as wire:
        line = b"%b /%b%b HTTP/1.1\r\nHost: gw.test\r\n%b\r\n%b"
        return exchange(wire, case, line % (case.method, key, case.target, case.headers, case.body))


def named_in_connection(headers: Headers) -> set[bytes]:
    values = b",".join(value for name, value in headers if name.lower() == b"connection")
    return {option.strip().lower() for option in values.split(b",")}


def kept(headers: Headers, ours: set[bytes]) -> Headers:
    """Return the fields that must be the same on both ways, in their order, names in lower case."""
    gone = ours | HOP_BY_HOP | named_in_connection(headers)
    return [(name.lower(), value) for name, value in headers if name.lower() not in gone]


def compare_traces(direct: Seen, relayed: Seen) -> None:
    """A trace goes on with a parent of the gateway's; what is none ends with its state, and one begins."""
    [told] = relayed.values(b"traceparent")
    version, trace, parent, flags = told.split(b"-")
    assert (version, len(trace), len(parent)) == (b"00", 32, 16)
    states = []
    if (said := direct.values(b"traceparent")) and said[0] == said[0].lower():
        assert [trace, flags] == said[0].split(b"-")[1::2]
        assert parent != said[0].split(b"-")[2]
        states = direct.values(b"tracestate")
    assert relayed.values(b"tracestate") == states


def compare_requests(direct: Seen, relayed: Seen) -> None:
    assert relayed.method == direct.method
    assert relayed.target == direct.target
    assert relayed.body == direct.body
    framing = {b"content-length"}
    assert kept(relayed.headers, OURS_UPSTREAM | framing) == kept(direct.headers, OURS_UPSTREAM | framing)
    assert relayed.values(b"content-length") == direct.values(b"content-length")
    assert [v.lower() for v in relayed.values(b"transfer-encoding")] == [
        v.lower() for v in direct.values(b"transfer-encoding")
    ]
    assert relayed.trailers == b""
    for name in (b"host", b"via", b"forwarded", b"x-forwarded-for", b"x-request-id", b"x-user-id", b"x-token-id"):
        assert len(relayed.values(name)) == 1
    compare_traces(direct, relayed)


def without_our_timing(headers: Headers) -> Headers:
    """Return the fields without the last ``Server-Timing``, which must be the gateway's."""
    last = max(at for at, (name, _) in enumerate(headers) if name == b"server-timing")
    assert TIMING.fullmatch(headers[last][1]), headers[last]
    return headers[:last] + headers[last + 1 :]


def compare_answers(case: Case, direct: Got, relayed: Got) -> None:
    assert relayed.status == direct.status
    assert relayed.code == ""
    assert relayed.body == direct.body
    changed = {b"content-length"}
    if not direct.values(b"date"):
        changed.add(b"date")
    theirs = without_our_timing(relayed.headers)
    assert kept(theirs, OURS_DOWN | changed) == kept(direct.headers, OURS_DOWN | changed)
    assert relayed.values(b"via")[-1].endswith(b"1.1 zenzefi-proxy")
    assert len(relayed.values(b"x-request-id")) == 1
    assert relayed.trailers == b""
    # A 100 is for one hop: the client's is said by the gateway.
    assert [status for status in relayed.interim if status != 100] == [s for s in direct.interim if s != 100]
    assert relayed.interim.count(100) == (b"100-continue" in case.headers)
    said = [fields for status, fields in zip(direct.interim, direct.interim_headers, strict=True) if status != 100]
    passed_on = [
        fields for status, fields in zip(relayed.interim, relayed.interim_headers, strict=True) if status != 100
    ]
    for there, here in zip(said, passed_on, strict=True):
        assert kept(here, OURS_DOWN) == kept(there, OURS_DOWN)
        assert [value for name, value in here if name == b"via"] == [b"1.1 zenzefi-proxy"]
    lengths = direct.values(b"content-length")
    encoded = [v for v in direct.values(b"content-encoding") if v.lower() != b"identity"]
    if direct.status in (204, 304) or (encoded and case.method != b"HEAD"):
        lengths = []
    assert relayed.values(b"content-length") == lengths
    if case.method == b"HEAD" or direct.status in (204, 304):
        assert relayed.framing == "none"
        assert not relayed.values(b"transfer-encoding")
    else:
        assert relayed.framing == ("length" if lengths else "chunked")
    with contextlib.suppress(ValueError):
        assert relayed.reason == HTTPStatus(direct.status).phrase.encode()


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_only_what_is_documented_differs(served, mirror: Mirror, number: int) -> None:
    case = CASES[number]
    key = b"case%d" % number
    direct = ask_directly(mirror, case, key)
    with served.wire() as wire:
        request = served.request(key + case.target, case.headers, case.body, method=case.method)
        relayed = exchange(wire, case, request)
        # Whatever it was, the connection is in step: the next answer is the next request's.
        if b"close" not in relayed.values(b"connection"):
            wire.send(served.request(b"after"))
            assert wire.read().body == b"ok"
            wire.socket.shutdown(socket.SHUT_WR)
    first, second, *_ = mirror.seen
    compare_requests(first, second)
    compare_answers(case, direct, relayed)

"""Requests that two servers could read differently, and headers that pretend to be ours, byte by byte.

Each vector says what the client must be answered. Whatever is refused never reaches the upstream, nothing reaches it
twice, and no byte of a body is ever read as a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.proxy.live import DEVICE
from tests.proxy.mirror import Seen
from tests.upstream import wait_until

pytestmark = pytest.mark.django_db

#: What an attacker hides behind the first request. It must never arrive by itself.
HIDDEN = b"GET /api/v1/proxy/hidden HTTP/1.1\r\nHost: gw.test\r\n@credentials\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@dataclass(frozen=True)
class Vector:
    name: str
    status: int
    extra: bytes = b""
    body: bytes = b""
    #: The whole request instead.
    raw: bytes = b""
    method: bytes = b"POST"


def refused(name: str, extra: bytes = b"", body: bytes = HIDDEN, **options) -> Vector:
    return Vector(name, 400, extra, body, **options)


def passes(name: str, extra: bytes = b"", body: bytes = b"", **options) -> Vector:
    return Vector(name, 200, extra, body, **options)


def line(first: bytes, host: bytes = b"Host: gw.test\r\n") -> bytes:
    return first + b"\r\n" + host + b"@credentials\r\n"


VECTORS = [
    # Two lengths, or none that two servers would agree on.
    refused("length and chunked", b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n" + HIDDEN),
    refused("chunked and length", CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked and length 0", CHUNKED + b"Content-Length: 0\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("two lengths", b"Content-Length: 0\r\nContent-Length: 5\r\n"),
    refused("the same length twice", b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    refused("a list of lengths", b"Content-Length: 5, 5\r\n", b"hello"),
    refused("a length with a sign", b"Content-Length: +5\r\n", b"hello"),
    refused("a negative length", b"Content-Length: -5\r\n"),
    refused("a hexadecimal length", b"Content-Length: 0x5\r\n", b"hello"),
    refused("an empty length", b"Content-Length:\r\n"),
    refused("a length with a space inside", b"Content-Length: 1 0\r\n"),
    refused("a length with an underscore", b"Content-Length: 1_0\r\n"),
    refused("a length beyond 64 bits", b"Content-Length: 18446744073709551621\r\n"),
    refused("a length in other digits", "Content-Length: ٥\r\n".encode()),
    refused("a length with a fraction", b"Content-Length: 5.0\r\n", b"hello"),
    refused("a length with a form feed", b"Content-Length: \x0c5\r\n", b"hello"),
    passes("a length with zeros before it", b"Content-Length: 0005\r\n", b"hello"),
    passes("a length with spaces around it", b"Content-Length:  \t5 \r\n", b"hello"),
    # Spellings of chunked.
    refused("xchunked", b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked by another name", b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("gzip before chunked", b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked not last", b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked twice in a list", b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked twice", CHUNKED + CHUNKED, b"0\r\n\r\n" + HIDDEN),
    refused("chunked with a parameter", b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked in quotes", b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n" + HIDDEN),
    refused("chunked after a vertical tab", b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked before NUL", b"Transfer-Encoding: chunked\x00\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("chunked after a comma", b"Transfer-Encoding: ,chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("an empty coding", b"Transfer-Encoding:\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("a space before the colon of a coding", b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("a folded coding", b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("a coding behind a folded line", b"X: y\r\n Transfer-Encoding: chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("a coding behind a bare CR", b"X: y\rTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    refused("a coding behind a bare LF", b"X: y\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    passes("chunked in capitals", b"TRANSFER-ENCODING: CHUNKED\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    passes("chunked without a space", b"Transfer-Encoding:chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    # Under another spelling these are plain headers, and those of ours must not stand beside the real ones.
    passes("a length with an underscore in its name", b"Content_Length: 99\r\nContent-Length: 5\r\n", b"hello"),
    passes("a coding with an underscore in its name", b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", b"hello"),
    # Bad chunks. The head was good, so the upstream may have seen the beginning of a request but never its end.
    refused("a chunk size that is none", CHUNKED, b"zz\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a chunk size with a sign", CHUNKED, b"+5\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a chunk size with 0x", CHUNKED, b"0x5\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a chunk size beyond 64 bits", CHUNKED, b"10000000000000005\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a negative chunk size", CHUNKED, b"-5\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a chunk size after a space", CHUNKED, b" 5\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a chunk longer than it says", CHUNKED, b"4\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a chunk without its end", CHUNKED, b"5\r\nhello0\r\n\r\n" + HIDDEN),
    refused("a chunk size before a bare LF", CHUNKED, b"5\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a chunk before a bare LF", CHUNKED, b"5\r\nhello\n0\r\n\r\n" + HIDDEN),
    refused("a last chunk before a bare LF", CHUNKED, b"5\r\nhello\r\n0\n\n" + HIDDEN),
    refused("a bare CR in a chunk extension", CHUNKED, b"5;a\rb\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a bare LF in a chunk extension", CHUNKED, b"5;a\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("NUL in a chunk extension", CHUNKED, b"5;a\x00b\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    refused("a space before a chunk extension's end", CHUNKED, b"5 \r\nhello\r\n0\r\n\r\n" + HIDDEN),
    passes("chunk extensions", CHUNKED, b"5;a=b;c\r\nhello\r\n0\r\n\r\n"),
    passes("a chunk extension in quotes", CHUNKED, b'5;a="x;y"\r\nhello\r\n0\r\n\r\n'),
    passes("a chunk size with zeros before it", CHUNKED, b"0005\r\nhello\r\n0\r\n\r\n"),
    # Lines.
    refused("a bare LF after a field", b"X-One: 1\nX-Two: 2\r\n", b""),
    refused("a bare CR in a value", b"X-One: 1\rX-Two: 2\r\n", b""),
    refused("NUL in a value", b"X-One: 1\x002\r\n", b""),
    refused("NUL in a name", b"X-\x00One: 1\r\n", b""),
    refused("DEL in a value", b"X-One: 1\x7f\r\n", b""),
    refused("a control character in a value", b"X-One: 1\x012\r\n", b""),
    refused("a folded line", b"X-One: 1\r\n 2\r\n", b""),
    refused("a line folded with a tab", b"X-One: 1\r\n\tX-User-Id: 2\r\n", b""),
    refused("a space before a colon", b"X-One : 1\r\n", b""),
    refused("a line without a colon", b"X-One\r\n", b""),
    refused("an empty name", b": 1\r\n", b""),
    refused("a name with a space", b"X One: 1\r\n", b""),
    refused("a name with a slash", b"X/One: 1\r\n", b""),
    refused("a name with a high byte", b"X-\xe9: 1\r\n", b""),
    refused("a name with 0x80", b"X-\x80: 1\r\n", b""),
    refused("a name with 0xff", b"\xffX-One: 1\r\n", b""),
    refused("a first field after a space", raw=b"GET /api/v1/proxy/v HTTP/1.1\r\n Host: gw.test\r\n@credentials\r\n"),
    refused("a first field after a tab", raw=b"GET /api/v1/proxy/v HTTP/1.1\r\n\tHost: gw.test\r\n@credentials\r\n"),
    refused("a field after a space", b" X-User-Id: forged-value\r\n", b""),
    refused("a space before the colon of an identity", b"X-User-Id : forged-value\r\n", b""),
    refused("NUL after an identity", b"X-User-Id\x00: forged-value\r\n", b""),
    # Host.
    refused("no Host", raw=b"GET /api/v1/proxy/v HTTP/1.1\r\n@credentials\r\n"),
    refused("an empty list of hosts", b"Host: other.test\r\n", b""),
    refused("two spellings of Host", b"HOST: gw.test\r\n", b""),
    refused("the same Host twice", b"Host: gw.test\r\n", b""),
    refused("Host with a comma", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: gw.test, evil.test\r\n")),
    refused("Host with a user and a password", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: a:b@gw.test\r\n")),
    refused("Host with NUL", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: gw.test\x00evil\r\n")),
    refused("Host with a path", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: gw.test/evil\r\n")),
    refused("Host with a user", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: a@gw.test\r\n")),
    refused("Host with a space", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: gw.test evil\r\n")),
    refused("Host with a quote", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b'Host: gw.test";by="x\r\n')),
    refused("Host with a high byte", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: gw\xe9.test\r\n")),
    refused("Host with a fragment", raw=line(b"GET /api/v1/proxy/v HTTP/1.1", b"Host: gw.test#x\r\n")),
    # The first line.
    refused("a fragment", raw=line(b"GET /api/v1/proxy/v#fragment HTTP/1.1")),
    refused("a fragment after a query", raw=line(b"GET /api/v1/proxy/v?a#b HTTP/1.1")),
    refused("another authority in the absolute form", raw=line(b"GET http://evil.test/api/v1/proxy/v HTTP/1.1")),
    refused("a user in the absolute form", raw=line(b"GET http://a@gw.test/api/v1/proxy/v HTTP/1.1")),
    refused("another scheme in the absolute form", raw=line(b"GET ftp://gw.test/api/v1/proxy/v HTTP/1.1")),
    passes("the absolute form", raw=line(b"GET http://gw.test/api/v1/proxy/v HTTP/1.1")),
    refused("a target with a space", raw=line(b"GET /api/v1/proxy/v x HTTP/1.1")),
    refused("a target with a high byte", raw=line(b"GET /api/v1/proxy/v\xe9 HTTP/1.1")),
    refused("a target with NUL", raw=line(b"GET /api/v1/proxy/v\x00 HTTP/1.1")),
    refused("a target with a bare CR", raw=line(b"GET /api/v1/proxy/v\rx HTTP/1.1")),
    refused("a target with a tab", raw=line(b"GET /api/v1/proxy/v\tx HTTP/1.1")),
    refused("a first line with a bare LF", raw=b"GET /api/v1/proxy/v HTTP/1.1\nHost: gw.test\r\n@credentials\r\n"),
    refused("no version", raw=line(b"GET /api/v1/proxy/v")),
    refused("a version of two", raw=line(b"GET /api/v1/proxy/v HTTP/2.0")),
    refused("an odd version", raw=line(b"GET /api/v1/proxy/v HTTP/1.10")),
    refused("a version in lower case", raw=line(b"GET /api/v1/proxy/v http/1.1")),
    refused("another protocol", raw=line(b"GET /api/v1/proxy/v HTCPCP/1.0")),
    # RFC 9112 §3 lets a server read the first line word by word; what is sent on is written anew.
    passes("two spaces in the first line", raw=line(b"GET  /api/v1/proxy/v HTTP/1.1")),
    refused("a space before the method", raw=line(b" GET /api/v1/proxy/v HTTP/1.1")),
    refused("a method in lower case", raw=line(b"get /api/v1/proxy/v HTTP/1.1")),
    refused("a method that the parser does not know", raw=line(b"FROB /api/v1/proxy/v HTTP/1.1")),
    refused(
        "a coding in HTTP/1.0",
        raw=line(b"POST /api/v1/proxy/v HTTP/1.0", b"Host: gw.test\r\n" + CHUNKED) + b"0\r\n\r\n",
    ),
    Vector("TRACE", 405, raw=line(b"TRACE /api/v1/proxy/v HTTP/1.1")),
    refused("CONNECT", raw=line(b"CONNECT gw.test:80 HTTP/1.1")),
    # Whose request it is.
    Vector("two tokens", 401, b"X-Access-Token: x\r\n"),
    Vector("the same token twice", 401, b"@credentials"),
    Vector("two devices", 400, b"X-Device-ID: device-two\r\n"),
    Vector("the same device twice", 400, b"X-Device-ID: %b\r\n" % DEVICE.encode()),
    Vector("two tokens in other spelling", 401, b"x-ACCESS-token: x\r\n"),
    Vector("an empty second token", 401, b"X-Access-Token:\r\n"),
    Vector("an empty second device", 403, b"X-Device-ID:\r\n"),
    passes("a token with underscores, twice", b"X_Access_Token: forged-value\r\nX_Access_Token: forged-value\r\n"),
    passes("a token with one underscore", b"X-Access_Token: forged-value\r\n"),
    passes("a device with underscores, twice", b"X_Device_ID: forged-value\r\nX_Device_ID: forged-value\r\n"),
    passes("two tokens named in two Connections", b"Connection: X-Access-Token\r\nConnection: X_Access_Token\r\n"),
    passes("what is ours to say named with underscores", b"Connection: X_User_Id, X_Token_Id, X_Forwarded_For\r\n"),
    passes(
        "another protocol asked for",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ),
    passes("a token with an underscore", b"X_Access_Token: forged-value\r\n"),
    passes("a device with an underscore", b"X_Device_Id: forged-value\r\n"),
    passes("the token named in Connection", b"Connection: X-Access-Token, X-Device-ID\r\n"),
    passes("our headers named in Connection", b"Connection: X-User-Id, X-Token-Id, X-Forwarded-For, Via, Host\r\n"),
    passes("the framing named in Connection", b"Connection: Content-Length\r\nContent-Length: 5\r\n", b"hello"),
    *(
        passes(f"{name} and {value}", f"{name}: {value}\r\n".encode())
        for name in (
            *("X-User-Id", "X_User_Id", "x-user_id", "X-USER-ID", "X-Token-Id", "X_Token_Id", "X-Real-IP", "X_Real_IP"),
            *("X-Client-IP", "True-Client-IP", "X-Forwarded-For", "X_Forwarded_For", "X-Forwarded_For", "Forwarded"),
            *("X-Forwarded", "X-Forwarded-By", "X-Forwarded-Host", "X_Forwarded_Host", "X-Forwarded-Proto"),
            *("X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Prefix", "X-Original-URL", "X_Original_Url"),
            *("X-Original-Host", "X-Rewrite-URL", "X-Forwarded-Scheme", "X-Forwarded-SSL", "X-HTTP-Host-Override"),
            *(
                "Cluster-Client-IP",
                "X-Cluster-Client-IP",
                "X-Remote-User",
                "Remote-User",
                "X-ProxyUser-Ip",
                "CF-Connecting-IP",
            ),
        )
        for value in ("forged-value",)
    ),
    *(
        passes(f"{name} twice", f"{name}: forged-value\r\n".encode() * 2)
        for name in (
            *("X-User-Id", "X_User_Id", "X-Token-Id", "X_Token_Id", "X-Forwarded-For", "X_Forwarded_For", "Forwarded"),
            *("X-Forwarded-Host", "X_Forwarded_Host", "X-Forwarded-Proto", "X_Forwarded_Proto", "X-Real-IP"),
        )
    ),
    passes(
        "two lengths with underscores", b"Content_Length: 1\r\nContent_Length: 99\r\nContent-Length: 5\r\n", b"hello"
    ),
    passes(
        "a coding with an underscore and chunks",
        b"Transfer_Encoding: identity\r\n" + CHUNKED,
        b"5\r\nhello\r\n0\r\n\r\n",
    ),
    # Trailers are no headers.
    passes("a token in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nX-Access-Token: forged-value\r\n\r\n"),
    passes("a device in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nX-Device-ID: forged-value\r\n\r\n"),
    passes("an identity in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nX-User-Id: forged-value\r\n\r\n"),
    passes("a header in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nX-Custom: forged-value\r\n\r\n"),
    refused("a length in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
    refused("a coding in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    passes("Connection in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nConnection: X-User-Id\r\n\r\n"),
    passes(
        "a token with underscores in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nX_Access_Token: forged-value\r\n\r\n"
    ),
    passes("a sender in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nX-Forwarded-For: forged-value\r\n\r\n"),
    passes("Host in a trailer", CHUNKED, b"5\r\nhello\r\n0\r\nHost: forged-value\r\n\r\n"),
    passes("TE", b"TE: trailers, deflate;q=0.5\r\n"),
]


def only(seen: list[Seen]) -> Seen:
    [one] = seen
    return one


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_a_vector_is_answered_as_it_should_be(served, mirror, vector):
    mirror.clear()
    data = vector.raw or b"%b /api/v1/proxy/v HTTP/1.1\r\nHost: gw.test\r\n@credentials%b\r\n%b" % (
        *(vector.method, vector.extra, vector.body),
    )
    data = data.replace(b"@credentials", served.credentials)
    with served.wire(timeout=20) as wire:
        wire.send(data)
        got = wire.read()
        assert (got.status, got.body[:200]) == (vector.status, got.body[:200])
        if vector.status == 400 and got.code != "device_malformed":
            assert b'"code": "bad_request"' in got.body
            # Whatever followed is not read as a request.
            assert wire.rest() == b""
        elif vector.status == 200 and b"close" not in got.values(b"connection"):
            wire.send(served.request(b"after"))
            assert wire.read().status == 200

    assert not [seen for seen in mirror.seen if b"hidden" in seen.target]
    if vector.status != 200:
        assert not [seen for seen in mirror.seen if seen.target == b"/v"], "a refused request was passed on whole"
        return
    seen = only([seen for seen in mirror.seen if seen.target == b"/v"])
    body = b"hello" if b"hello" in vector.body else b""
    assert seen.body == body
    framing = seen.values(b"content-length") + seen.values(b"transfer-encoding")
    assert framing == ([b"chunked"] if b"0\r\n" in vector.body else [b"5"] if body else [])
    wrote = b"\r\n".join(b"%b: %b" % pair for pair in seen.headers)
    assert b"forged-value" not in wrote
    assert served.issued.secret.encode() not in wrote
    assert seen.values(b"x-user-id") == [str(served.issued.token.owner_id).encode()]
    assert seen.values(b"x-token-id") == [str(served.issued.token.pk).encode()]
    assert seen.values(b"x-forwarded-for") == [b"127.0.0.1"]
    assert seen.values(b"host") == [mirror.url.removeprefix("http://").encode()]
    for name in (b"x-access-token", b"x-device-id", b"te", b"connection"):
        assert not seen.values(name)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"0", b"0"),
        (b"5;", b"x"),
        (b'5;a="', b"x"),
        (b"5\r\nhello\r\n0\r\n", b"X-One: 1\r\n"),
        (b"5\r\nhello\r\n0\r\nX-One: ", b"v"),
        (b"5\r\nhello\r\n0\r\nX", b"X"),
    ],
    ids=["a size", "an extension", "a quoted extension", "trailers", "a trailer's value", "a trailer's name"],
)
def test_framing_without_end_is_cut(served, mirror, start, piece):
    """Long before any deadline: what the parser keeps of it would fill the memory."""
    mirror.clear()
    sent = 0
    with served.wire(timeout=20) as wire:
        wire.send(served.request(b"v", CHUNKED, start, method=b"POST"))
        block = piece * (65_536 // len(piece))
        with pytest.raises(ConnectionError):
            while sent < 32_000_000:
                wire.send(block)
                sent += len(block)
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchange")
    assert not [seen for seen in mirror.seen if seen.target == b"/v"], "it was passed on whole"


def test_a_body_in_small_chunks_may_be_long(served, mirror):
    """Its framing is many times what is allowed between two pieces."""
    mirror.clear()
    with served.wire() as wire:
        wire.send(served.request(b"v", CHUNKED, b"1;abc\r\nx\r\n" * 50_000 + b"0\r\n\r\n", method=b"POST"))
        assert wire.read().status == 200
    assert only([seen for seen in mirror.seen if seen.target == b"/v"]).body == b"x" * 50_000


def test_there_are_enough_vectors():
    assert len(VECTORS) >= 180
    assert len({vector.name for vector in VECTORS}) == len(VECTORS)

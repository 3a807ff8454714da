"""W3C Trace Context, as a server sees it behind the gateway: the caller's trace goes on, or a new one begins."""

from __future__ import annotations

import re

import pytest

from tests.proxy.mirror import Mirror
from tests.proxy.test_websocket_frames import Far, Near, speaker

pytestmark = pytest.mark.django_db

TRACE, PARENT = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
VALID = b"00-%b-%b-01" % (TRACE, PARENT)
OURS = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])")


def seen(served, mirror: Mirror, *fields: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return what of the two fields reached the server."""
    mirror.clear()
    with served.wire() as wire:
        wire.send(served.request(b"traced", b"".join(b"%b\r\n" % field for field in fields)))
        assert wire.read().status == 200
    [request] = mirror.seen
    return request.values(b"traceparent"), request.values(b"tracestate")


def parts(values: list[bytes]) -> tuple[bytes, bytes, bytes]:
    """Return trace id, parent id and flags of the only ``traceparent``."""
    [value] = values
    match = OURS.fullmatch(value)
    assert match is not None, value
    assert match[1].strip(b"0") and match[2].strip(b"0")
    return match[1], match[2], match[3]


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (VALID, b"01"),
        (b"00-%b-%b-00" % (TRACE, PARENT), b"00"),
        (b" \t" + VALID + b"\t ", b"01"),
        # What version 00 does not define is sent as zero.
        (b"00-%b-%b-02" % (TRACE, PARENT), b"00"),
        (b"00-%b-%b-ff" % (TRACE, PARENT), b"01"),
        # A later version: as much of it as is known, as version 00.
        (b"01-%b-%b-01" % (TRACE, PARENT), b"01"),
        (b"cc-%b-%b-00" % (TRACE, PARENT), b"00"),
        (b"cc-%b-%b-01-what-the-future-will-be-like" % (TRACE, PARENT), b"01"),
        (b"fe-%b-%b-03-" % (TRACE, PARENT), b"01"),
    ],
)
def test_a_trace_goes_on_with_a_parent_of_ours(served, mirror, value, flags):
    parents, states = seen(served, mirror, b"Traceparent: " + value, b"Tracestate: a=1")

    trace, parent, passed = parts(parents)
    assert (trace, passed) == (TRACE, flags)
    assert parent != PARENT
    assert states == [b"a=1"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=repr(b" ".join(fields))[:60])
        for fields in (
            (),
            (b"traceparent:",),
            (b"traceparent: " + VALID[:-1],),
            (b"traceparent: " + VALID + b"0",),
            (b"traceparent: " + VALID + b"-",),
            (b"traceparent: " + VALID + b"-more",),
            (b"traceparent: " + VALID.upper(),),
            (b"traceparent: " + VALID.replace(b"f", b"g"),),
            (b"traceparent: " + VALID.replace(b"-", b"_"),),
            (b"traceparent: " + VALID.replace(b"-01", b"-1"),),
            (b"traceparent: " + VALID.replace(b"-01", b"-0x"),),
            (b"traceparent: 00-%b-%b-01" % (b"0" * 32, PARENT),),
            (b"traceparent: 00-%b-%b-01" % (TRACE, b"0" * 16),),
            (b"traceparent: 00-%b-%b-01" % (TRACE[:-1], PARENT),),
            (b"traceparent: 00-%b-%b-01" % (TRACE, PARENT + b"0"),),
            (b"traceparent: ff-%b-%b-01" % (TRACE, PARENT),),
            (b"traceparent: 0-%b-%b-01" % (TRACE, PARENT),),
            (b"traceparent: CC-%b-%b-01" % (TRACE, PARENT),),
            (b"traceparent: cc-%b-%b-01.what" % (TRACE, PARENT),),
            (b"traceparent: cc-%b-%b-011" % (TRACE, PARENT),),
            (b"traceparent: " + VALID, b"traceparent: " + VALID),
            (b"traceparent: " + VALID, b"X-Between: 1", b"Traceparent: " + VALID.replace(b"f", b"e")),
            (b"traceparent: %b, %b" % (VALID, VALID),),
        )
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(served, mirror, fields):
    parents, states = seen(served, mirror, *fields, b"tracestate: a=1")

    trace, parent, flags = parts(parents)
    assert trace != TRACE
    assert parent != PARENT
    # Nothing was recorded here.
    assert flags == b"00"
    assert states == []


def test_ids_are_new_for_each_request(served, mirror):
    found = [parts(seen(served, mirror)[0]) for _ in range(20)]
    assert len({trace for trace, _, _ in found}) == len({parent for _, parent, _ in found}) == 20
    found = [parts(seen(served, mirror, b"traceparent: " + VALID)[0]) for _ in range(20)]
    assert {trace for trace, _, _ in found} == {TRACE}
    assert len({parent for _, parent, _ in found}) == 20


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((b"tracestate: congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",), [b"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"]),
        ((b"tracestate: a=1, b=2 ,c=3",), [b"a=1, b=2 ,c=3"]),
        ((b"tracestate: a=1", b"Tracestate: b=2,c=3", b"tracestate: d=4"), [b"a=1,b=2,c=3,d=4"]),
        ((b"tracestate: a=1", b"tracestate:", b"tracestate: \t ", b"tracestate: b=2"), [b"a=1,b=2"]),
        ((b"tracestate:",), []),
        ((b"tracestate: " + b",".join(b"k%d=%b" % (n, b"v" * 100) for n in range(32)),), None),
        # For this hop only (RFC 9110 §7.6.1).
        ((b"tracestate: a=1", b"Connection: tracestate"), []),
    ],
)
def test_tracestate_passes_as_one_list_in_order(served, mirror, fields, expected):
    _, states = seen(served, mirror, b"traceparent: " + VALID, *fields)
    assert states == ([fields[0].partition(b": ")[2]] if expected is None else expected)


def test_a_client_cannot_strip_the_traceparent_through_connection(served, mirror):
    parents, _ = seen(served, mirror, b"traceparent: " + VALID, b"Connection: traceparent")
    assert parts(parents)[0] == TRACE


def test_names_that_only_look_alike_pass_as_they_are(served, mirror):
    mirror.clear()
    with served.wire() as wire:
        wire.send(served.request(b"x", b"Trace_Parent: 1\r\nTrace-Parent: 2\r\nTrace_State: 3\r\nX-Traceparent: 4\r\n"))
        assert wire.read().status == 200
    [request] = mirror.seen
    names = (b"trace_parent", b"trace-parent", b"trace_state", b"x-traceparent")
    assert [request.values(name) for name in names] == [[b"1"], [b"2"], [b"3"], [b"4"]]
    parts(request.values(b"traceparent"))


def test_a_request_that_is_sent_again_has_one_traceparent_each_time(served, mirror):
    """The connection breaks once without an answer; the second one carries the same trace."""

    async def break_once(peer):
        mirror.answers["again"] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        peer.reset()
        return False

    mirror.answers["again"] = break_once
    mirror.clear()
    with served.wire() as wire:
        wire.send(served.request(b"again", b"traceparent: %b\r\ntracestate: a=1\r\n" % VALID))
        assert wire.read().status == 200

    first, second = mirror.seen
    for request in (first, second):
        assert parts(request.values(b"traceparent"))[0] == TRACE
        assert request.values(b"tracestate") == [b"a=1"]


@pytest.mark.parametrize(
    ("fields", "trace", "states"),
    [
        (b"traceparent: %b\r\ntracestate: a=1\r\ntracestate: b=2\r\n" % VALID, TRACE, [b"a=1,b=2"]),
        (b"traceparent: %b\r\ntraceparent: %b\r\ntracestate: a=1\r\n" % (VALID, VALID), None, []),
        (b"tracestate: a=1\r\n", None, []),
    ],
)
def test_a_handshake_carries_the_trace_as_well(served, mirror, fields, trace, states):
    mirror.answers["ws"] = speaker(Far())
    mirror.clear()
    with Near(served, extra=fields):
        pass
    [request] = mirror.seen
    found, parent, _ = parts(request.values(b"traceparent"))
    assert parent != PARENT
    assert (found == TRACE) == (trace == TRACE)
    assert request.values(b"tracestate") == states

"""Lines of a carrier's log: what is read of them, and what is not believed."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.edge_log import MalformedLine, parse, tag

TAG = tag("tests-only-edge-secret-0123456789abcdef").encode()
TOKEN, USER = str(uuid.UUID(int=7)), str(uuid.UUID(int=8))


def line(
    *,
    tag_: bytes = TAG,
    token: str = TOKEN,
    user: str = USER,
    ours: str = "203.0.113.9 0",
    device: str = "device-one",
    first_byte: str = "0.001 : 0.002",
    received: str = "0 : 250",
    sent: str = "250",
    moment: str = "1790000000.123",
    agent: str = "browser",
) -> bytes:
    fields = (token, user, ours, device, first_byte, received, sent, moment, agent)
    return b"<190>Nov 26 06:00:00 %b: " % tag_ + " ".join(f'"{field}"' for field in fields).encode("latin-1")


def test_a_line_is_read():
    carried = parse(line(), TAG)
    assert carried.token_id == TOKEN.encode()
    assert carried.user_id == USER.encode()
    assert (carried.address, carried.device, carried.user_agent) == ("203.0.113.9", b"device-one", b"browser")
    assert (carried.reached, carried.bytes_out, carried.at, carried.counted) == (True, 250, 1790000000123, False)


@pytest.mark.parametrize(
    ("received", "sent", "counted"),
    [
        ("0 : 250", "250", 250),
        # A client that left: what it was sent.
        ("0 : 1000000", "4000", 4000),
        # Chunks on our side only: their framing is nobody's traffic.
        ("0 : 250", "262", 250),
        ("0 : 0", "0", 0),
        ("0 : -", "12", 12),
        ("250", "250", 250),
    ],
)
def test_what_passed_is_counted_and_not_more(received, sent, counted):
    assert parse(line(received=received, sent=sent), TAG).bytes_out == counted


@pytest.mark.parametrize("first_byte", ["-", "0.001 : -", "0.001 : 0.000, -"])
def test_where_no_server_answered_nothing_passed(first_byte):
    carried = parse(line(first_byte=first_byte, sent="150", ours="203.0.113.9 1"), TAG)
    assert (carried.reached, carried.bytes_out, carried.counted) == (False, 0, True)


def test_escapes_are_undone():
    carried = parse(line(device="a\\x22b\\x5Cc-device", agent="caf\\xC3\\xA9 \\x22x\\x22"), TAG)
    assert carried.device == b'a"b\\c-device'
    assert carried.user_agent == "café".encode() + b' "x"'


def test_what_is_unknown_is_empty():
    carried = parse(line(ours="- 0", agent="-"), TAG)
    assert (carried.address, carried.user_agent) == ("", b"")
    assert parse(line(ours="2001:db8::1 0"), TAG).address == "2001:db8::1"


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"<190>Nov 26 06:00:00 host nginx: something else",
        line(tag_=tag("another-secret-0123456789abcdef0123").encode()),
        line(tag_=b"z" * 32),
        line(tag_=TAG[:-1]),
        line(token="7"),
        line(token=TOKEN.upper()[:-1] + "G"),
        line(user=""),
        line(ours="203.0.113.9"),
        line(ours="somewhere 0"),
        line(device="short"),
        line(device='de"vice-one'),
        line(sent="-5"),
        line(sent=""),
        line(sent="9" * 30),
        line(moment="now"),
        line()[:-20],
        line() + b' "one more"',
        line() + b"\n" + line(),
        line(agent="\x00")[:-1],
    ],
)
def test_what_is_no_line_of_ours_is_not_believed(datagram):
    with pytest.raises(MalformedLine):
        parse(datagram, TAG)


@given(st.binary(max_size=400))
def test_nothing_but_a_refusal_comes_of_noise(noise):
    with pytest.raises(MalformedLine):
        parse(noise, TAG)
    with pytest.raises(MalformedLine):
        parse(b"<190>Nov 26 06:00:00 %b: " % TAG + noise, TAG)


def test_the_tag_is_one_of_syslog_and_tells_nothing():
    secret = "tests-only-edge-secret-0123456789abcdef"
    assert len(tag(secret)) == 32
    assert tag(secret).isalnum()
    assert tag(secret) != tag(secret + "x")

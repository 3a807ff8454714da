"""JSON bodies, as far as no route is needed to see it; the routes' own tests send the rest."""

from __future__ import annotations

import io
from decimal import Decimal

import pytest
from rest_framework.exceptions import ParseError

from zenzefi.lib.errors import PayloadTooLarge
from zenzefi.lib.parsers import StrictJSONParser


def parse(body: bytes):
    return StrictJSONParser().parse(io.BytesIO(body))


def test_a_number_with_a_fraction_is_exact():
    value = parse(b'{"amount": 0.1}')["amount"]

    assert isinstance(value, Decimal) and value == Decimal("0.1")


def test_every_character_that_can_be_stored_passes():
    text = "é ключ 鍵 \U0001f511 \\u00e9 \\ud83d\\udd11 \\\\u0000"

    assert parse(f'{{"x": "{text}"}}'.encode())["x"] == "é ключ 鍵 🔑 é 🔑 \\u0000"


@pytest.mark.parametrize("depth", [30, 31, 32])
def test_nesting_is_bounded(depth):
    """The object itself, and what is inside: 32 levels of values in all."""
    body = b'{"a":' + b"[" * depth + b"]" * depth + b"}"

    if depth <= 31:
        assert parse(body)
    else:
        with pytest.raises(ParseError):
            parse(body)


def test_a_wide_body_is_not_a_deep_one():
    assert len(parse(b'{"a": [' + b",".join([b"1"] * 10_000) + b"]}")["a"]) == 10_000


def test_the_limit_is_exact(settings):
    settings.JSON_BODY_MAX_BYTES = 2000
    body = b'{"a": "' + b"x" * (2000 - 9) + b'"}'
    assert len(body) == 2000

    assert parse(body)
    with pytest.raises(PayloadTooLarge):
        parse(body + b" ")


def test_no_more_is_read_than_the_limit(settings):
    settings.JSON_BODY_MAX_BYTES = 2000
    stream = io.BytesIO(b"x" * 1_000_000)

    with pytest.raises(PayloadTooLarge):
        StrictJSONParser().parse(stream)

    assert stream.tell() == 2001

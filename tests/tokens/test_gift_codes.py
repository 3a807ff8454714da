"""What a code of a gift looks like and how generously it is read."""

from __future__ import annotations

import re

import pytest

from tokens import gift_codes
from zenzefi.lib.logging import redact


def test_a_code_has_eighty_bits_and_no_letter_that_looks_like_a_digit():
    codes = {gift_codes.shown(gift_codes.generate()) for _ in range(200)}
    assert len(codes) == 200
    for code in codes:
        assert re.fullmatch(r"GIFT(-[0-9A-HJKMNP-TV-Z]{4}){4}", code)
    assert len({character for code in codes for character in code[5:].replace("-", "")}) == 32


@pytest.mark.parametrize(
    "typed",
    [
        "GIFT-0123-4567-89AB-CDEF",
        "gift-0123-4567-89ab-cdef",
        "GIFT0123456789ABCDEF",
        "0123456789abcdef",
        "0123-4567-89AB-CDEF",
        " 0123 4567 89AB CDEF ",
        "GIFT-OI23-4567-89AB-CDEF",
        "gift-ol23-4567-89ab-cdef",
    ],
)
def test_read_as_people_type_it(typed):
    assert gift_codes.canonical(typed) == "0123456789ABCDEF"


def test_a_code_whose_look_alikes_spell_the_prefix():
    assert gift_codes.canonical("GIFT-0123-4567-89AB") == "G1FT0123456789AB"


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "GIFT",
        "GIFT-0123",
        "0123456789ABCDE",
        "0123456789ABCDEF0",
        "GIFT-U123-4567-89AB-CDEF",
        "GAFT-0123-4567-89AB-CDEF",
        "0123456789ABCDEF\n",
        "é" * 16,
        "١" * 16,
        "\x00" * 16,
        "-" * 16,
        pytest.param("0" * 50_000, id="long"),
    ],
)
def test_what_cannot_be_a_code(typed):
    assert gift_codes.canonical(typed) is None


@pytest.mark.parametrize(
    "line",
    [
        "Internal Server Error: /api/v1/gifts/{}/claim",
        '"POST /api/v1/gifts/{}/claim?x=1 HTTP/1.1" 503',
        "Not Found: /api/v1/gifts/{}",
        "'/api/v1/gifts/{}'",
    ],
)
@pytest.mark.parametrize("code", ["GIFT-0123-4567-89AB-CDEF", "gift0123456789abcdef", "0123-4567-89ab-cdef"])
def test_no_code_gets_into_a_log_line(line, code):
    assert redact(line.format(code)) == line.format("[redacted]")


def test_what_stays_in_a_log_line():
    for line in (
        "Internal Server Error: /api/v1/gifts/5f0c9d0a-6c0e-4b6f-9a3f-4a4be0f1d2c3",
        "Internal Server Error: /api/v1/gifts",
        "Internal Server Error: /api/v1/tokens/5f0c9d0a-6c0e-4b6f-9a3f-4a4be0f1d2c3/gift",
    ):
        assert redact(line) == line
    assert redact("Internal Server Error: /api/v1/gifts/0123 4567 89ab cdef/claim").endswith("/gifts/[redacted]/claim")
    assert redact("sent GIFT-0123-4567-89AB-CDEF by mail") == "sent [redacted] by mail"

"""The shape of a token."""

from __future__ import annotations

import hashlib
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokens import secrets

ALPHABET = string.ascii_letters + string.digits + "-_"


def test_a_token_is_64_url_safe_characters_with_a_known_prefix():
    for _ in range(200):
        token = secrets.generate()
        assert len(token) == 64
        assert token.startswith("znz_")
        assert set(token) <= set(ALPHABET)
        assert secrets.is_well_formed(token)


def test_tokens_do_not_repeat():
    assert len({secrets.generate() for _ in range(1000)}) == 1000


def test_the_checksum_is_the_crc32_in_base_62():
    """Worked by hand, so that scanners elsewhere can rely on it."""
    body = "znz_" + "A" * 54
    number, text = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        text = (string.digits + string.ascii_uppercase + string.ascii_lowercase)[digit] + text
    assert secrets.is_well_formed(body + text.rjust(6, "0"))


@given(st.integers(0, 63), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_noticed(position, character):
    token = secrets.generate()
    mistyped = token[:position] + character + token[position + 1 :]
    assert secrets.is_well_formed(mistyped) == (mistyped == token)


@given(st.text(max_size=80))
def test_any_other_text_is_no_token(text):
    assert not secrets.is_well_formed(text)


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "0", lambda t: f"{t}\n", lambda t: " " + t])
def test_the_whole_text_must_be_the_token(change):
    assert not secrets.is_well_formed(change(secrets.generate()))


def test_what_is_stored_is_the_sha256():
    assert secrets.digest("znz_x") == hashlib.sha256(b"znz_x").hexdigest()

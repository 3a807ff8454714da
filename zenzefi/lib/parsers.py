"""Request bodies of the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import IO, Any

from django.conf import settings
from django.utils.translation import gettext as _
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from zenzefi.lib.errors import PayloadTooLarge


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _finite_decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None


class StrictJSONParser(BaseParser):
    """JSON as RFC 8259 has it: UTF-8, no NaN or Infinity, numbers with a fraction read as ``Decimal``.

    Bodies above ``JSON_BODY_MAX_BYTES`` answer 413. A NUL character, which PostgreSQL cannot store, and a lone
    surrogate, which UTF-8 cannot carry, answer 400 here, once, for every field.
    """

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        limit = settings.JSON_BODY_MAX_BYTES
        raw = stream.read(limit + 1)
        if len(raw) > limit:
            raise PayloadTooLarge
        try:
            text = raw.decode("utf-8")
            if "\x00" in text:
                raise ValueError("NUL")
            data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_decimal)
        except (ValueError, RecursionError):
            raise ParseError(_("The body is not valid JSON.")) from None
        if not isinstance(data, dict):
            raise ParseError(_("The body must be a JSON object."))
        if "\\u" in text:
            _refuse_unstorable(data)
        return data


def _refuse_unstorable(value: Any) -> None:
    """Escapes can smuggle in what the raw bytes could not hold: ``\\u0000`` and lone surrogates."""
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ParseError(_("The body holds a character that cannot be stored."))
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_unstorable(name)
            _refuse_unstorable(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)

"""Request bodies of the API."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import IO, Any

from django.conf import settings
from django.utils.translation import gettext as _
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from zenzefi.lib.errors import PayloadTooLarge

#: What PostgreSQL cannot store and UTF-8 cannot carry.
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")
_MAX_DEPTH = 32


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
        _refuse_unusable(data)
        return data


def expect_no_fields(request: Request) -> None:
    """Look at a body that the route has no use for: what is no JSON object is refused there as everywhere else.

    DRF parses on demand, so a view that asks for no field would carry out whatever came with it.
    """
    _ = request.data


def _refuse_unusable(data: Any) -> None:
    """Refuse what escapes can smuggle in, ``\\u0000`` and lone surrogates, and what is nested without need.

    Whoever walks the data later, to validate or to serialize it again, may then do so recursively.
    """
    level = [data]
    for _depth in range(_MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                if _UNSTORABLE.search(value):
                    raise ParseError(_("The body holds a character that cannot be stored."))
            elif isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
        if not below:
            return
        level = below
    raise ParseError(_("The body is nested too deeply."))

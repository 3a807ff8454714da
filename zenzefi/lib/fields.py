"""Serializer fields that take JSON at its word where DRF's own are lenient."""

from __future__ import annotations

import re
from typing import Any

from rest_framework import serializers


class StringField(serializers.CharField):
    """A JSON string and nothing else: DRF would turn the number 12345678 into a password."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class EmailField(StringField):
    """An e-mail address, documented as one; whether it is well formed the model decides."""


class WholeNumberField(serializers.IntegerField):
    """A whole number: a JSON integer or a string of ASCII digits. Refuses booleans, fractions, exponents and signs."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int | str):
            self.fail("invalid")
        text = str(data)
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
            self.fail("invalid")
        return super().to_internal_value(text)

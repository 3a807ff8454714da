"""Serializer fields that DRF's own are too lenient for."""

from __future__ import annotations

import re
from typing import Any

from rest_framework import serializers


class WholeNumberField(serializers.IntegerField):
    """A whole number: a JSON integer or a string of ASCII digits. Refuses booleans, fractions, exponents and signs."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int | str):
            self.fail("invalid")
        text = str(data)
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
            self.fail("invalid")
        return super().to_internal_value(text)

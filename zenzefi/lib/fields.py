"""Serializer fields that take JSON at its word."""

from __future__ import annotations

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

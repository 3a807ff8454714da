"""Answers of the gateway itself, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class UsageSerializer(serializers.Serializer[Any]):
    requests = serializers.IntegerField()
    bytes_in = serializers.IntegerField(help_text="Bytes of bodies and messages sent by the client.")
    bytes_out = serializers.IntegerField(help_text="Bytes of bodies and messages sent to the client.")


class ProxyStatusSerializer(serializers.Serializer[Any]):
    connected = serializers.BooleanField(help_text="Always true: a token that cannot be used is refused.")
    user_id = serializers.UUIDField()
    token_id = serializers.UUIDField()
    is_activated = serializers.BooleanField()
    status = serializers.ChoiceField(choices=["ready", "active"])
    activated_at = serializers.DateTimeField(allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    duration_hours = serializers.IntegerField()
    time_remaining_seconds = serializers.IntegerField(allow_null=True, help_text="Null while ready.")
    scope = serializers.CharField()
    usage = UsageSerializer(allow_null=True, help_text="A second or two behind; null while it is not known.")

"""What the gateway answers about a token, as the OpenAPI schema shows it. The gateway itself writes the JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class UsageSerializer(serializers.Serializer[Any]):
    requests = serializers.IntegerField()
    bytes_in = serializers.IntegerField(help_text="From the client, bodies only.")
    bytes_out = serializers.IntegerField(help_text="To the client, bodies only.")


class GatewayStatusSerializer(serializers.Serializer[Any]):
    connected = serializers.BooleanField(help_text="Always true; a token that opens nothing is answered with 401.")
    user_id = serializers.UUIDField()
    token_id = serializers.UUIDField()
    is_activated = serializers.BooleanField()
    status = serializers.ChoiceField(choices=["ready", "active"])
    activated_at = serializers.DateTimeField(allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    duration_hours = serializers.IntegerField()
    time_remaining_seconds = serializers.IntegerField(allow_null=True, help_text="Null while ready.")
    scope = serializers.CharField()
    usage = UsageSerializer(allow_null=True, help_text="Of this token so far; null while the counters are away.")

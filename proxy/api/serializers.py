"""What ``/proxy/status`` answers, for the schema; the data plane writes it itself."""

from __future__ import annotations

from rest_framework import serializers


class UsageSerializer(serializers.Serializer[None]):
    requests = serializers.IntegerField()
    bytes_in = serializers.IntegerField(help_text="Bytes of request bodies and messages from the client.")
    bytes_out = serializers.IntegerField(help_text="Bytes of answers and messages to the client.")


class ProxyStatusSerializer(serializers.Serializer[None]):
    connected = serializers.BooleanField()
    user_id = serializers.UUIDField()
    token_id = serializers.UUIDField()
    is_activated = serializers.BooleanField()
    status = serializers.ChoiceField(choices=["ready", "active"])
    activated_at = serializers.DateTimeField(allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    duration_hours = serializers.IntegerField()
    time_remaining_seconds = serializers.IntegerField(allow_null=True, help_text="Null while ready.")
    scope = serializers.CharField()
    usage = UsageSerializer()

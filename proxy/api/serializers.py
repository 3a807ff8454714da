"""What the gateway answers about a token, as the OpenAPI schema shows it. The gateway itself writes the JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from proxy.limits import QUOTAS
from proxy.models import Session


class UsageSerializer(serializers.Serializer[Any]):
    requests = serializers.IntegerField()
    bytes_in = serializers.IntegerField(help_text="From the client, bodies only.")
    bytes_out = serializers.IntegerField(help_text="To the client, bodies only.")


class OwnUsageSerializer(UsageSerializer):
    today = UsageSerializer(help_text="Since midnight UTC.")
    this_month = UsageSerializer(help_text="Since the first of the month UTC.")


class LimitsSerializer(serializers.Serializer[Any]):
    """Null where there is no limit. Bytes count both directions together."""

    requests = serializers.IntegerField(help_text="In each window.")
    window_seconds = serializers.IntegerField()
    seats = serializers.IntegerField(help_text="Devices at once.")
    concurrent_requests = serializers.IntegerField(allow_null=True)
    bandwidth = serializers.IntegerField(allow_null=True, help_text="Bytes a second; what is faster is slowed down.")
    requests_per_day = serializers.IntegerField(allow_null=True)
    requests_per_month = serializers.IntegerField(allow_null=True)
    bytes_per_day = serializers.IntegerField(allow_null=True)
    bytes_per_month = serializers.IntegerField(allow_null=True)


class LimitRefusalSerializer(serializers.Serializer[Any]):
    """The body of an answer that a limit refused."""

    detail = serializers.CharField(help_text="One sentence for people, in the language of Accept-Language.")
    code = serializers.ChoiceField(choices=["rate_limited", "concurrency_limited", "quota_exceeded"])
    request_id = serializers.CharField(help_text="Also in the X-Request-ID header.")
    rule = serializers.ChoiceField(choices=["rate", "concurrency", *QUOTAS])
    limit = serializers.IntegerField()
    reset_at = serializers.DateTimeField()
    retry_after = serializers.IntegerField(help_text="Seconds, as in the header Retry-After.")


class TokenDeviceSerializer(serializers.ModelSerializer[Session]):
    last_seen_at = serializers.DateTimeField(source="last_activity_at")
    holds_seat = serializers.SerializerMethodField(
        help_text="Whether it keeps other devices out right now; null while that is not known."
    )

    class Meta:
        model = Session
        fields = ["device_id", "client_address", "user_agent", "last_seen_at", "holds_seat"]

    def get_holds_seat(self, session: Session) -> bool | None:
        holders: set[str] | None = self.context["holders"]
        return None if holders is None else session.device_id in holders


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
    limits = LimitsSerializer()
    usage = OwnUsageSerializer(allow_null=True, help_text="Of this token so far; null while the counters are away.")

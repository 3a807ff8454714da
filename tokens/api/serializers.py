"""Access tokens in requests and answers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.validators import validate_email
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from referrals.selectors import masked
from tokens.models import AccessToken, Gift
from zenzefi.lib.fields import EmailField, StringField, WholeNumberField
from zenzefi.lib.money import AmountField, MoneyField


class PriceSerializer(serializers.Serializer[Any]):
    duration_hours = serializers.IntegerField()
    price = MoneyField(source="current_price", help_text=_("ZNC"))
    scopes = serializers.SerializerMethodField(help_text=_("The scopes this duration is sold with."))

    def get_scopes(self, _: Any) -> list[str]:
        scopes: list[str] = self.context["scopes"]
        return scopes


class PurchaseSerializer(serializers.Serializer[Any]):
    duration_hours = WholeNumberField(help_text=_("One of the durations of the price list."))
    scope = StringField(max_length=64, default="full")
    label = StringField(max_length=100, allow_blank=True, default="")  # type: ignore[assignment]


class TokenChangeSerializer(serializers.Serializer[Any]):
    label = StringField(max_length=100, allow_blank=True, required=False)  # type: ignore[assignment]
    allowed_ips = serializers.ListField(
        child=StringField(max_length=64),
        max_length=50,
        required=False,
        help_text=_("Addresses and networks (CIDR) that the token may be used from; an empty list is every network."),
    )
    auto_renew = serializers.BooleanField(
        required=False,
        help_text=_("Buy a successor shortly before the end. Switching it on ends a pause."),
    )


class ReleaseDeviceSerializer(serializers.Serializer[Any]):
    device_id = StringField(
        max_length=255, required=False, help_text=_("The device to release; all of them when it is left out.")
    )


class CheckSerializer(serializers.Serializer[Any]):
    token = StringField(max_length=255, trim_whitespace=False)


class CheckResultSerializer(serializers.Serializer[Any]):
    valid = serializers.BooleanField()
    status = serializers.ChoiceField(choices=AccessToken.Status.choices, allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    time_remaining_seconds = serializers.IntegerField(allow_null=True, help_text=_("Null before activation."))


class ActiveOnlySerializer(serializers.Serializer[Any]):
    active_only = serializers.BooleanField(default=True, help_text=_("Leave out expired and revoked tokens."))


class DeviceSerializer(serializers.Serializer[Any]):
    id = serializers.CharField(source="device_id")
    last_seen_at = serializers.DateTimeField(source="device_seen_at")


class RenewalSerializer(serializers.Serializer[Any]):
    """How a token's renewal stands."""

    status = serializers.ChoiceField(
        choices=["off", "waiting", "paused", "renewed"],
        help_text=_("waiting: on, and not yet due. renewed: the successor is bought."),
    )
    due_at = serializers.DateTimeField(allow_null=True, help_text=_("Null until the token is activated."))
    paused_reason = serializers.CharField(
        allow_blank=True,
        help_text=_(
            "insufficient_balance, debt_outstanding, daily_cap_reached, duration_not_sold, scope_not_sold, "
            "owner_disabled or token_expired."
        ),
    )
    renewed_by = serializers.UUIDField(allow_null=True, help_text=_("The successor."))


def seconds_remaining(token: AccessToken) -> int | None:
    """Return the whole seconds left, ``None`` before activation."""
    remaining = token.remaining()
    return None if remaining is None else int(remaining.total_seconds())


class TokenSerializer(serializers.ModelSerializer[AccessToken]):
    scope = serializers.CharField(source="scope_id")
    token_hint = serializers.CharField(source="hint", help_text=_("Prefix and last four characters."))
    cost_znc = MoneyField(source="paid", help_text=_("What was paid for it, ZNC."))
    refunded_znc = MoneyField(source="refunded", help_text=_("What was paid back for it, ZNC."))
    status = serializers.SerializerMethodField()
    is_active = serializers.BooleanField(source="is_usable", help_text=_("Neither expired, revoked nor a gift."))
    time_remaining_seconds = serializers.SerializerMethodField(help_text=_("Null before activation."))
    allowed_ips = serializers.ListField(
        child=serializers.CharField(), help_text=_("Networks that the token may be used from; none is every network.")
    )
    device = serializers.SerializerMethodField(help_text=_("The device that used it last."))
    renewal = serializers.SerializerMethodField()
    renews = serializers.UUIDField(
        source="predecessor_id",
        allow_null=True,
        help_text=_("The token that this one goes on for, with the same secret, from activated_at on."),
    )

    class Meta:
        model = AccessToken
        fields = [
            "id",
            "token_hint",
            "label",
            "duration_hours",
            "scope",
            "cost_znc",
            "refunded_znc",
            "status",
            "is_active",
            "created_at",
            "activated_at",
            "expires_at",
            "revoked_at",
            "time_remaining_seconds",
            "device",
            "allowed_ips",
            "auto_renew",
            "renewal",
            "renews",
        ]

    @extend_schema_field(serializers.ChoiceField(choices=AccessToken.Status.choices))
    def get_status(self, token: AccessToken) -> str:
        return token.status().value

    @extend_schema_field(serializers.IntegerField(allow_null=True))
    def get_time_remaining_seconds(self, token: AccessToken) -> int | None:
        return seconds_remaining(token)

    @extend_schema_field(DeviceSerializer(allow_null=True))
    def get_device(self, token: AccessToken) -> Any:
        return DeviceSerializer(token).data if token.device_id else None

    @extend_schema_field(RenewalSerializer)
    def get_renewal(self, token: AccessToken) -> Any:
        status = "off"
        if token.renewed_at is not None:
            status = "renewed"
        elif token.auto_renew:
            status = "paused" if token.renewal_paused else "waiting"
        renewal = {
            "status": status,
            "due_at": token.renew_at,
            "paused_reason": token.renewal_paused,
            "renewed_by": token.renewed_by_id,
        }
        return RenewalSerializer(renewal).data


class TokenWithSecretSerializer(TokenSerializer):
    """A token whose secret the caller sees this once; ``context["secret"]`` holds it."""

    token = serializers.SerializerMethodField(help_text=_("The token itself. It is shown this once."))

    class Meta(TokenSerializer.Meta):
        fields = ["id", "token", *TokenSerializer.Meta.fields[1:]]

    def get_token(self, _: AccessToken) -> str:
        secret: str = self.context["secret"]
        return secret


class PurchaseResultSerializer(TokenWithSecretSerializer):
    """``context["balance"]`` holds the buyer's balance right after."""

    new_balance = serializers.SerializerMethodField(help_text=_("The balance right after, ZNC."))

    class Meta(TokenWithSecretSerializer.Meta):
        fields = [*TokenWithSecretSerializer.Meta.fields, "new_balance"]

    @extend_schema_field(MoneyField())
    def get_new_balance(self, _: AccessToken) -> str:
        return str(self.context["balance"])


class RevocationSerializer(serializers.Serializer[Any]):
    revoked = serializers.BooleanField()
    refund_amount = MoneyField(help_text=_("What the caller got back, ZNC: nothing for a token that was a gift."))
    new_balance = MoneyField()
    message = serializers.CharField()


class RenewalTermsChangeSerializer(serializers.Serializer[Any]):
    enabled = serializers.BooleanField()
    duration_hours = WholeNumberField(
        allow_null=True, default=None, help_text=_("Only tokens of this duration; null for every one.")
    )
    scope = StringField(
        max_length=64, allow_null=True, default=None, help_text=_("Only tokens of this scope; null for every one.")
    )
    daily_cap = AmountField(
        allow_null=True,
        required=False,
        max_value=Decimal("99999999.99"),
        help_text=_("ZNC that renewals may cost in a day of UTC; null for the platform's own, left out: as it is."),
    )


class RenewalTermsSerializer(serializers.Serializer[Any]):
    auto_renew_enabled = serializers.BooleanField(source="enabled")
    auto_renew_duration_hours = serializers.IntegerField(source="duration_hours", allow_null=True)
    auto_renew_scope = serializers.CharField(source="scope", allow_null=True)
    daily_cap = MoneyField(allow_null=True, help_text=_("ZNC"))
    cost_per_renewal = MoneyField(
        source="cost", allow_null=True, help_text=_("Today, ZNC; null without a duration, or when it is not sold.")
    )


class TierSerializer(serializers.Serializer[Any]):
    tier = serializers.CharField(source="slug")
    name = serializers.CharField()
    monthly_price = MoneyField(help_text=_("ZNC for a month."))
    api_requests_per_minute = serializers.SerializerMethodField()
    proxy_requests_per_minute = serializers.SerializerMethodField(help_text=_("Of each token."))

    @extend_schema_field(serializers.IntegerField())
    def get_api_requests_per_minute(self, tier: Any) -> int:
        return tier.api_requests_per_minute or settings.RATE_LIMITS["api"].per_minute

    @extend_schema_field(serializers.IntegerField())
    def get_proxy_requests_per_minute(self, tier: Any) -> int:
        return tier.proxy_requests_per_minute or settings.RATE_LIMITS["proxy"].per_minute


class OwnTierSerializer(TierSerializer):
    """``context["subscription"]`` holds how the user came by it."""

    paid = serializers.SerializerMethodField(help_text=_("ZNC for the present month; null when nothing was bought."))
    period_start = serializers.SerializerMethodField()
    period_end = serializers.SerializerMethodField(help_text=_("Null for a tier that nobody pays for."))
    renews = serializers.SerializerMethodField(help_text=_("Whether the next month is bought when this one ends."))

    def _subscription(self) -> Any:
        return self.context["subscription"]

    @extend_schema_field(MoneyField(allow_null=True))
    def get_paid(self, _: Any) -> str | None:
        subscription = self._subscription()
        return None if subscription is None else str(subscription.price)

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_period_start(self, _: Any) -> Any:
        subscription = self._subscription()
        return subscription and serializers.DateTimeField().to_representation(subscription.period_start)

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_period_end(self, _: Any) -> Any:
        subscription = self._subscription()
        end = subscription and subscription.period_end
        return end and serializers.DateTimeField().to_representation(end)

    def get_renews(self, _: Any) -> bool:
        subscription = self._subscription()
        return subscription is not None and subscription.due_at is not None and subscription.cancelled_at is None


class ChosenTierSerializer(OwnTierSerializer):
    """``context["balance"]`` holds the balance right after."""

    new_balance = serializers.SerializerMethodField(help_text=_("The balance right after, ZNC."))

    @extend_schema_field(MoneyField())
    def get_new_balance(self, _: Any) -> str:
        return str(self.context["balance"])


class TierChoiceSerializer(serializers.Serializer[Any]):
    tier = StringField(max_length=32)


class NewGiftSerializer(serializers.Serializer[Any]):
    message = StringField(max_length=500, allow_blank=True, default="", help_text=_("For whoever claims it."))
    recipient_email = EmailField(
        max_length=254,
        allow_blank=True,
        default="",
        validators=[validate_email],
        help_text=_("Only the account with this address may claim. Empty: whoever has the code."),
    )


class GiftSerializer(serializers.ModelSerializer[Gift]):
    """A gift as one of the two it is between sees it; ``context["user"]`` is that one."""

    direction = serializers.SerializerMethodField()
    duration_hours = serializers.IntegerField(source="token.duration_hours")
    scope = serializers.CharField(source="token.scope_id")
    giver = serializers.SerializerMethodField(help_text=_("Username, masked."))
    claimed_by = serializers.SerializerMethodField(help_text=_("Username, masked; null until claimed."))
    expires_at = serializers.DateTimeField(
        allow_null=True, help_text=_("Until when it can be claimed; null until approved.")
    )

    class Meta:
        model = Gift
        fields = [
            "id",
            "direction",
            "status",
            "code_hint",
            "token_id",
            "duration_hours",
            "scope",
            "giver",
            "claimed_by",
            "recipient_email",
            "message",
            "created_at",
            "expires_at",
            "closed_at",
        ]

    @extend_schema_field(serializers.ChoiceField(choices=["sent", "received"]))
    def get_direction(self, gift: Gift) -> str:
        return "sent" if gift.giver_id == self.context["user"].pk else "received"

    def get_giver(self, gift: Gift) -> str:
        return masked(gift.giver.username)

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_claimed_by(self, gift: Gift) -> str | None:
        return None if gift.claimed_by is None else masked(gift.claimed_by.username)


class GiftWithCodeSerializer(GiftSerializer):
    """A gift whose code the giver sees this once; ``context["code"]`` holds it."""

    code = serializers.SerializerMethodField(help_text=_("Claims the gift. It is shown this once."))

    class Meta(GiftSerializer.Meta):
        fields = ["id", "code", *GiftSerializer.Meta.fields[1:]]

    def get_code(self, _: Gift) -> str:
        code: str = self.context["code"]
        return code

"""Bundles in requests and answers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from bundles.models import MAX_TOKENS, Bundle
from zenzefi.lib.fields import WholeNumberField
from zenzefi.lib.money import AmountField, MoneyField


class BundleSerializer(serializers.ModelSerializer[Bundle]):
    scope = serializers.CharField(source="scope_id")
    base_price = MoneyField(help_text=_("The tokens bought one by one, ZNC."))
    total_price = MoneyField(help_text=_("What the bundle costs, ZNC."))
    savings = MoneyField()
    price_per_token = MoneyField()

    class Meta:
        model = Bundle
        fields = [
            "id",
            "name",
            "description",
            "token_count",
            "duration_hours",
            "scope",
            "discount_percent",
            "base_price",
            "total_price",
            "savings",
            "price_per_token",
            "is_active",
            "created_at",
            "updated_at",
        ]


class ActiveOnlySerializer(serializers.Serializer[Any]):
    active_only = serializers.BooleanField(default=True, help_text=_("Leave out bundles that are switched off."))


class BundleFieldsSerializer(serializers.Serializer[Any]):
    """What staff give of a bundle; with ``partial=True`` only what changes."""

    name = serializers.CharField(max_length=100)
    description = serializers.CharField(max_length=1000, allow_blank=True, required=False)
    token_count = WholeNumberField(min_value=1, max_value=MAX_TOKENS)
    duration_hours = WholeNumberField(min_value=1, help_text=_("One of the durations of the price list."))
    scope = serializers.CharField(max_length=64, required=False, help_text=_("By default full."))
    discount_percent = serializers.DecimalField(
        max_digits=5, decimal_places=2, min_value=Decimal(0), max_value=Decimal("99.99")
    )
    base_price = AmountField(required=False, help_text=_("Instead of tokens × price of one; needs a reason."))
    total_price = AmountField(required=False, help_text=_("Instead of base price − discount; needs a reason."))
    override_reason = serializers.CharField(
        max_length=255, required=False, help_text=_("Why the prices are not those that follow. It is kept.")
    )
    is_active = serializers.BooleanField(required=False)


class StaffBundleSerializer(BundleSerializer):
    """What staff see of a bundle besides."""

    list_price = MoneyField(help_text=_("What one cost on its own when the bundle was priced, ZNC."))

    class Meta(BundleSerializer.Meta):
        fields = [*BundleSerializer.Meta.fields, "list_price", "override_reason"]


class BundleTokenSerializer(serializers.Serializer[Any]):
    """One of the tokens of a bundle that was just bought."""

    id = serializers.UUIDField(source="token.id")
    token = serializers.CharField(source="secret", help_text=_("The token itself. It is shown this once."))
    token_hint = serializers.CharField(source="token.hint")
    duration_hours = serializers.IntegerField(source="token.duration_hours")
    scope = serializers.CharField(source="token.scope_id")
    cost_znc = MoneyField(source="token.paid", help_text=_("Its share of the price, ZNC. A refund comes from it."))
    created_at = serializers.DateTimeField(source="token.created_at")
    activated_at = serializers.DateTimeField(source="token.activated_at", allow_null=True)
    expires_at = serializers.DateTimeField(source="token.expires_at", allow_null=True)
    is_active = serializers.BooleanField(source="token.is_usable")


class PurchasedBundleSerializer(serializers.Serializer[Any]):
    bundle_name = serializers.CharField(source="purchase.bundle_name")
    tokens_generated = serializers.IntegerField(source="purchase.token_count")
    cost_znc = MoneyField(source="purchase.paid", help_text=_("ZNC"))
    new_balance = MoneyField(source="balance", help_text=_("The balance right after, ZNC."))
    tokens = BundleTokenSerializer(many=True)

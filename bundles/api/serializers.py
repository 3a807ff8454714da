"""Bundles in requests and answers."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from bundles.models import Bundle
from zenzefi.lib.money import MoneyField


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

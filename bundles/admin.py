"""Bundles in the back office."""

from __future__ import annotations

from decimal import Decimal

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from bundles.models import Bundle


@admin.register(Bundle)
class BundleAdmin(admin.ModelAdmin[Bundle]):
    list_display = [
        "name",
        "token_count",
        "duration_hours",
        "scope_id",
        "base_price",
        "discount_percent",
        "total_price",
        "savings",
        "is_active",
    ]
    list_filter = ["is_active", "scope", "duration_hours"]
    search_fields = ["name", "description"]
    readonly_fields = ["created_at", "updated_at"]

    @admin.display(description=_("savings"))
    def savings(self, bundle: Bundle) -> Decimal:
        return bundle.savings

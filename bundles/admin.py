"""Bundles in the back office."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from bundles import services
from bundles.models import Bundle, BundlePurchase
from tokens.services import list_price
from zenzefi.lib.admin import ReadOnlyAdmin
from zenzefi.lib.errors import DomainError


class BundleForm(forms.ModelForm[Bundle]):
    """Prices left empty follow from the price list and the discount."""

    class Meta:
        model = Bundle
        fields = [
            "name",
            "description",
            "token_count",
            "duration_hours",
            "scope",
            "discount_percent",
            "base_price",
            "total_price",
            "override_reason",
            "is_active",
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("base_price", "total_price"):
            if name in self.fields:
                self.fields[name].required = False

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if self.errors:
            return cleaned
        repriced = not self.instance.list_price or {"token_count", "duration_hours"} & set(self.changed_data)
        try:
            prices = services.price_bundle(
                token_count=cleaned["token_count"],
                list_price=list_price(cleaned["duration_hours"]) if repriced else self.instance.list_price,
                discount_percent=cleaned["discount_percent"],
                base_price=cleaned["base_price"],
                total_price=cleaned["total_price"],
                override_reason=cleaned["override_reason"],
            )
        except DomainError as refused:
            fields = {name: texts for name, texts in (refused.errors or {}).items() if name in self.fields}
            raise ValidationError(fields or str(refused.detail)) from None
        self.instance.list_price = prices.list_price
        cleaned.update(base_price=prices.base_price, total_price=prices.total_price)
        cleaned["override_reason"] = prices.override_reason
        return cleaned


@admin.register(Bundle)
class BundleAdmin(admin.ModelAdmin[Bundle]):
    """Bundles are switched off, never deleted: what was bought refers to them."""

    form = BundleForm
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
    readonly_fields = ["list_price", "created_at", "updated_at"]

    @admin.display(description=_("savings"))
    def savings(self, bundle: Bundle) -> Decimal:
        return bundle.savings

    def has_delete_permission(self, request: HttpRequest, obj: Bundle | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Bundle, form: Any, change: bool) -> None:
        services.save_edited_bundle(bundle=obj, actor=request.user)


@admin.register(BundlePurchase)
class BundlePurchaseAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "buyer", "bundle_name", "token_count", "paid"]
    list_filter = ["bundle", "created_at"]
    list_select_related = ["buyer"]
    search_fields = ["=id", "buyer__email", "buyer__username", "bundle_name"]
    date_hierarchy = "created_at"
    fields = ["id", "buyer", "bundle", "bundle_name", "token_count", "base_price", "paid", "created_at"]

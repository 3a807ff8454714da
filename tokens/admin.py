"""Access tokens in the back office."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from tokens import services
from tokens.models import AccessToken, Scope, TokenPrice
from zenzefi.lib import clock
from zenzefi.lib.admin import ReadOnlyAdmin
from zenzefi.lib.errors import DomainError


class StatusFilter(admin.SimpleListFilter):
    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(AccessToken.Status.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> QuerySet[AccessToken]:
        now = clock.now()
        conditions = {
            AccessToken.Status.READY.value: Q(revoked_at__isnull=True, expires_at__isnull=True),
            AccessToken.Status.ACTIVE.value: Q(revoked_at__isnull=True, expires_at__gt=now),
            AccessToken.Status.EXPIRED.value: Q(revoked_at__isnull=True, expires_at__lte=now),
            AccessToken.Status.REVOKED.value: Q(revoked_at__isnull=False),
        }
        return queryset.filter(conditions.get(self.value() or "", Q()))


class RevokeForm(forms.Form):
    reason = forms.CharField(label=_("Reason"), max_length=255, widget=forms.TextInput(attrs={"size": 60}))


@admin.register(AccessToken)
class AccessTokenAdmin(ReadOnlyAdmin):
    """Nobody sees more of a token than its hint; it changes only by being revoked, with a reason."""

    list_display = [
        "hint",
        "owner",
        "label",
        "scope_id",
        "duration_hours",
        "status",
        "paid",
        "refunded",
        "created_at",
        "expires_at",
    ]
    list_filter = [StatusFilter, "scope", "duration_hours", "created_at"]
    list_select_related = ["owner"]
    search_fields = ["=id", "owner__email", "owner__username", "=last_four", "label"]
    date_hierarchy = "created_at"
    fields = [
        "id",
        "hint",
        "owner",
        "label",
        "scope",
        "duration_hours",
        "status",
        "list_price",
        "paid",
        "refunded",
        "created_at",
        "activated_at",
        "expires_at",
        "device_id",
        "device_seen_at",
        "revoked_at",
        "revoked_reason",
    ]
    actions = ["revoke_with_refund", "revoke_without_refund"]

    @admin.display(description=_("token"))
    def hint(self, token: AccessToken) -> str:
        return token.hint

    @admin.display(description=_("status"))
    def status(self, token: AccessToken) -> Any:
        return token.status().label

    def has_revoke_with_refund_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.revoke_with_refund"))

    def has_revoke_without_refund_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.revoke_without_refund"))

    @admin.action(description=_("Revoke with refund"), permissions=["revoke_with_refund"])
    def revoke_with_refund(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> TemplateResponse | None:
        return self._revoke(request, queryset, refund=True)

    @admin.action(description=_("Revoke without refund"), permissions=["revoke_without_refund"])
    def revoke_without_refund(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> TemplateResponse | None:
        return self._revoke(request, queryset, refund=False)

    def _revoke(
        self, request: HttpRequest, queryset: QuerySet[AccessToken], *, refund: bool
    ) -> TemplateResponse | None:
        form = RevokeForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            self._carry_out(request, queryset, refund=refund, reason=form.cleaned_data["reason"])
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _t("Revoke with refund") if refund else _t("Revoke without refund"),
            "opts": self.opts,
            "tokens": queryset.select_related("owner"),
            "refund": refund,
            "action": "revoke_with_refund" if refund else "revoke_without_refund",
            "form": form,
        }
        return TemplateResponse(request, "admin/tokens/accesstoken/revoke.html", context)

    def _carry_out(self, request: HttpRequest, queryset: QuerySet[AccessToken], *, refund: bool, reason: str) -> None:
        """Revoke each token in a transaction of its own: one that cannot be revoked holds up none of the others."""
        refunds: list[Decimal] = []
        for token in queryset:
            try:
                revocation = services.revoke_token(token_id=token.pk, actor=request.user, refund=refund, reason=reason)
            except DomainError as exc:
                self.message_user(request, f"{token.hint}: {exc.detail}", messages.ERROR)
            else:
                refunds.append(revocation.refund_amount)
                self.log_change(request, token, [_t("Revoked: %(reason)s") % {"reason": reason}])
        if refunds:
            text = ngettext(
                "%(count)d token revoked, %(refund)s ZNC paid back.",
                "%(count)d tokens revoked, %(refund)s ZNC paid back.",
                len(refunds),
            )
            self.message_user(request, text % {"count": len(refunds), "refund": sum(refunds)}, messages.SUCCESS)


@admin.register(TokenPrice)
class TokenPriceAdmin(admin.ModelAdmin[TokenPrice]):
    list_display = ["duration_hours", "price", "is_active", "updated_at"]
    list_filter = ["is_active"]


@admin.register(Scope)
class ScopeAdmin(admin.ModelAdmin[Scope]):
    list_display = ["slug", "description", "is_active"]
    list_filter = ["is_active"]
    search_fields = ["slug", "description"]

    def get_readonly_fields(self, request: HttpRequest, obj: Scope | None = None) -> list[str]:
        # The name is the key: tokens and path rules refer to it.
        return ["slug"] if obj else []

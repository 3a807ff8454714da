"""Limits, usage and the switch of the gateway in the back office."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _

from proxy import administration
from proxy.limits import COLUMNS
from proxy.models import GatewaySwitch, TierLimits, TokenLimits, TokenUsage
from tokens.services import as_networks
from zenzefi.lib.admin import ReadOnlyAdmin, ReasonForm
from zenzefi.lib.errors import DomainError


@admin.register(TokenUsage)
class TokenUsageAdmin(ReadOnlyAdmin):
    list_display = ["day", "token", "requests", "received", "sent"]
    list_filter = ["day"]
    list_select_related = ["token"]
    search_fields = ["=token__id", "token__owner__email", "token__owner__username", "=token__last_four"]
    date_hierarchy = "day"
    fields = ["day", "token", "requests", "received", "sent"]

    @admin.display(description=_("received"), ordering="bytes_in")
    def received(self, usage: TokenUsage) -> str:
        return filesizeformat(usage.bytes_in)

    @admin.display(description=_("sent"), ordering="bytes_out")
    def sent(self, usage: TokenUsage) -> str:
        return filesizeformat(usage.bytes_out)


class LimitsForm(forms.ModelForm[Any]):
    """Asks why, too: a limit may not change without a reason."""

    reason = forms.CharField(label=_("Reason"), max_length=255, widget=forms.TextInput(attrs={"size": 60}))


class TokenLimitsForm(LimitsForm):
    allowed_ips = forms.CharField(
        label=_("Allowed networks"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 4, "cols": 50}),
        help_text=_("One address or network (CIDR) a line. Empty: every network."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.instance._state.adding:
            self.fields["allowed_ips"].initial = "\n".join(self.instance.token.allowed_ips)

    def clean_allowed_ips(self) -> list[str]:
        try:
            return as_networks(self.cleaned_data["allowed_ips"].split())
        except DomainError as refused:
            raise forms.ValidationError(str(refused.detail)) from refused


class _LimitsAdmin(admin.ModelAdmin[Any]):
    """Empty fields say nothing: the token's tier counts, then the platform. Removed by emptying every field."""

    show_full_result_count = False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(TokenLimits)
class TokenLimitsAdmin(_LimitsAdmin):
    form = TokenLimitsForm
    list_display = ["token", "owner", "requests_per_minute", "seats", "concurrent_requests", "bandwidth", "updated_at"]
    list_select_related = ["token__owner"]
    search_fields = ["=token__id", "token__owner__email", "token__owner__username", "=token__last_four"]
    raw_id_fields = ["token"]
    fields = ["token", "requests_per_minute", *COLUMNS, "allowed_ips", "reason"]

    @admin.display(description=_("owner"), ordering="token__owner__email")
    def owner(self, limits: TokenLimits) -> str:
        return str(limits.token.owner)

    def get_readonly_fields(self, request: HttpRequest, obj: TokenLimits | None = None) -> list[str]:
        return ["token"] if obj else []

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"token": request.GET.get("token", "")}

    def save_model(self, request: HttpRequest, obj: TokenLimits, form: Any, change: bool) -> None:
        given = form.cleaned_data
        administration.set_token_limits(
            token_id=obj.token_id,
            limits={name: given[name] for name in ("requests_per_minute", *COLUMNS)},
            # A page to add limits starts empty: what the owner has chosen stays unless something is written there.
            allowed_ips=given["allowed_ips"] if change or given["allowed_ips"] else None,
            actor=request.user,
            reason=given["reason"],
        )


@admin.register(TierLimits)
class TierLimitsAdmin(_LimitsAdmin):
    """The tier itself says how many requests a minute its tokens may make."""

    form = LimitsForm
    list_display = ["tier", "seats", "concurrent_requests", "bandwidth", "updated_at"]
    list_select_related = ["tier"]
    fields = ["tier", *COLUMNS, "reason"]

    def get_readonly_fields(self, request: HttpRequest, obj: TierLimits | None = None) -> list[str]:
        return ["tier"] if obj else []

    def save_model(self, request: HttpRequest, obj: TierLimits, form: Any, change: bool) -> None:
        given = form.cleaned_data
        administration.set_tier_limits(
            tier=obj.tier_id,
            limits={name: given[name] for name in COLUMNS},
            actor=request.user,
            reason=given["reason"],
        )


@admin.register(GatewaySwitch)
class GatewaySwitchAdmin(ReadOnlyAdmin):
    """Closed, the gateway refuses every request and ends what is open, in every process."""

    list_display = ["__str__", "is_closed", "reason", "changed_at", "changed_by"]
    list_select_related = ["changed_by"]
    fields = ["is_closed", "reason", "changed_at", "changed_by"]
    actions = ["close_gateway", "open_gateway"]

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("proxy.operate_gateway_switch"))

    @admin.action(description=_("Close the gateway"), permissions=["operate"])
    def close_gateway(self, request: HttpRequest, queryset: QuerySet[GatewaySwitch]) -> TemplateResponse | None:
        return self._switch(request, queryset, closed=True)

    @admin.action(description=_("Open the gateway"), permissions=["operate"])
    def open_gateway(self, request: HttpRequest, queryset: QuerySet[GatewaySwitch]) -> TemplateResponse | None:
        return self._switch(request, queryset, closed=False)

    def _switch(
        self, request: HttpRequest, queryset: QuerySet[GatewaySwitch], *, closed: bool
    ) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            reason = form.cleaned_data["reason"]
            changed = administration.switch_gateway(closed=closed, actor=request.user, reason=reason)
            text = _t("The gateway is closed.") if closed else _t("The gateway is open.")
            if changed:
                self.log_change(request, queryset.get(), [f"{text} {reason}"])
            self.message_user(request, text, messages.WARNING if closed else messages.SUCCESS)
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _t("Close the gateway") if closed else _t("Open the gateway"),
            "opts": self.opts,
            "switches": queryset,
            "closed": closed,
            "action": "close_gateway" if closed else "open_gateway",
            "form": form,
        }
        return TemplateResponse(request, "admin/proxy/gatewayswitch/switch.html", context)

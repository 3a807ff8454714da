"""The gateway in the back office: who used what, and which paths a scope opens."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext_lazy as _

from proxy.models import ScopeRule, Session
from zenzefi.lib.admin import ReadOnlyAdmin


class OpenFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("open", _("Open")), ("ended", _("Ended"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Session]) -> QuerySet[Session]:
        if self.value() == "open":
            return queryset.filter(ended_at__isnull=True)
        if self.value() == "ended":
            return queryset.filter(ended_at__isnull=False)
        return queryset


@admin.register(Session)
class SessionAdmin(ReadOnlyAdmin):
    list_display = ["started_at", "user", "token", "device_id", "client_address", "requests", "traffic", "ended"]
    list_filter = [OpenFilter, "ended_reason", "started_at"]
    list_select_related = ["user", "token"]
    search_fields = ["user__email", "user__username", "device_id", "client_address", "token__last_four"]
    date_hierarchy = "started_at"
    ordering = ["-started_at", "pk"]

    @admin.display(description=_("traffic in / out"), ordering="bytes_out")
    def traffic(self, session: Session) -> str:
        return f"{filesizeformat(session.bytes_in)} / {filesizeformat(session.bytes_out)}"

    @admin.display(description=_("ended because"), ordering="ended_at")
    def ended(self, session: Session) -> str:
        return session.get_ended_reason_display() if session.ended_at else "-"


@admin.register(ScopeRule)
class ScopeRuleAdmin(admin.ModelAdmin[ScopeRule]):
    """The paths a restricted scope opens. A change reaches every gateway within seconds."""

    list_display = ["pattern", "scope", "description"]
    list_filter = ["scope"]
    list_select_related = ["scope"]
    search_fields = ["pattern", "description"]
    ordering = ["scope", "pattern"]

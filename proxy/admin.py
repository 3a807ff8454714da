"""The gateway in the back office: sessions to look at; limits, path rules and servers stand in modules of their own."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext_lazy as _

from proxy import limits_admin, scope_admin, upstream_admin  # noqa: F401 - registers them
from proxy.models import Session
from zenzefi.lib.admin import ReadOnlyAdmin


class OpenFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("open", _("Open")), ("ended", _("Ended"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Session]) -> QuerySet[Session]:
        if self.value() is None:
            return queryset
        return queryset.filter(ended_at__isnull=self.value() == "open")


@admin.register(Session)
class SessionAdmin(ReadOnlyAdmin):
    list_display = [
        "device_id",
        "user",
        "token",
        "client_address",
        "requests",
        "received",
        "sent",
        "started_at",
        "last_activity_at",
        "ended_reason",
    ]
    list_filter = [OpenFilter, "ended_reason", "started_at"]
    list_select_related = ["user", "token"]
    search_fields = ["device_id", "user__email", "user__username", "=client_address", "=token__id", "=token__last_four"]
    date_hierarchy = "started_at"
    fields = [
        "id",
        "user",
        "token",
        "device_id",
        "client_address",
        "user_agent",
        "requests",
        "received",
        "sent",
        "started_at",
        "last_activity_at",
        "ended_at",
        "ended_reason",
    ]

    @admin.display(description=_("received"), ordering="bytes_in")
    def received(self, session: Session) -> str:
        return filesizeformat(session.bytes_in)

    @admin.display(description=_("sent"), ordering="bytes_out")
    def sent(self, session: Session) -> str:
        return filesizeformat(session.bytes_out)

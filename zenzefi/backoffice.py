"""The back office: Django's admin under its own name, apps in the order staff think of them."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

_ORDER = ["accounts", "wallet", "tokens", "bundles", "referrals", "proxy", "analytics", "notifications"]


class BackOfficeSite(AdminSite):
    site_header = _("Zenzefi back office")
    site_title = _("Zenzefi back office")
    index_title = _("Overview")

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Return the apps from the people to the machinery; what is not named here comes last."""
        apps = super().get_app_list(request, app_label)
        return sorted(
            apps, key=lambda app: _ORDER.index(app["app_label"]) if app["app_label"] in _ORDER else len(_ORDER)
        )

"""The admin with this project's own site."""

from __future__ import annotations

from django.contrib.admin.apps import AdminConfig


class BackOfficeConfig(AdminConfig):
    default_site = "zenzefi.backoffice.BackOfficeSite"

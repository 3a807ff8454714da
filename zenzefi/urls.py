"""Routes of the control plane. Every app brings its own; none has a trailing slash (a middleware makes it optional)."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

handler400 = "zenzefi.lib.errors.bad_request"
handler403 = "zenzefi.lib.errors.permission_denied"
handler404 = "zenzefi.lib.errors.not_found"
handler500 = "zenzefi.lib.errors.server_error"

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/v1/", include("accounts.api.urls")),
]

"""Routes of the control plane. Every app brings its own; none has a trailing slash (a middleware makes it optional)."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from zenzefi import views

handler400 = "zenzefi.lib.errors.bad_request"
handler403 = "zenzefi.lib.errors.permission_denied"
handler404 = "zenzefi.lib.errors.not_found"
handler500 = "zenzefi.lib.errors.server_error"

urlpatterns = [
    path("", views.front, name="front"),
    path("favicon.ico", views.favicon, name="favicon"),
    path("health", views.HealthView.as_view(), name="health"),
    path("health/live", views.LiveView.as_view(), name="health-live"),
    path("health/ready", views.ReadyView.as_view(), name="health-ready"),
    path("health/detailed", views.DetailedHealthView.as_view(), name="health-detailed"),
    path("metrics", views.metrics, name="metrics"),
    path("docs", views.swagger, name="docs"),
    path("redoc", views.redoc, name="redoc"),
    path("api/schema", views.schema, name="schema"),
    path("openapi.json", views.schema, name="openapi"),
    path("admin/", admin.site.urls),
    path("api/v1/", include("accounts.api.urls")),
    path("api/v1/", include("wallet.api.urls")),
    path("api/v1/", include("referrals.api.urls")),
    path("api/v1/", include("tokens.api.urls")),
    path("api/v1/", include("bundles.api.urls")),
    path("api/v1/", include("proxy.api.urls")),
]

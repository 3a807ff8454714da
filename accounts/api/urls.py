"""Routes of the accounts API, below ``/api/v1/``."""

from __future__ import annotations

from django.urls import path

from accounts.api import views

urlpatterns = [
    path("auth/register", views.RegisterView.as_view()),
    path("auth/login", views.LoginView.as_view()),
    path("auth/refresh", views.RefreshView.as_view()),
    path("auth/logout", views.LogoutView.as_view()),
    path("users/me", views.MeView.as_view()),
    path("users/me/sessions", views.SessionsView.as_view()),
    path("users/me/sessions/<uuid:session_id>", views.SessionView.as_view()),
]

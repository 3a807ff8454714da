from django.urls import path

from proxy.api import views

urlpatterns = [
    path("proxy/status", views.StatusView.as_view()),
    path("proxy/<path:path>", views.RelayView.as_view()),
]

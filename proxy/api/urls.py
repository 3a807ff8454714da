from django.urls import path

from proxy.api import views

urlpatterns = [
    path("tokens/<uuid:token_id>/devices", views.DevicesView.as_view()),
    path("proxy/status", views.StatusView.as_view()),
    path("proxy/<path:path>", views.RelayView.as_view()),
]

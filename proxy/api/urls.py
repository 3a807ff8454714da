from django.urls import path

from proxy.api import views

urlpatterns = [
    path("proxy/status", views.ProxyStatusView.as_view()),
    path("proxy/<path:path>", views.ProxyView.as_view()),
]

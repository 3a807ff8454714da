from django.urls import path

from proxy.api import views

urlpatterns = [
    path("proxy/status", views.ProxyStatusView.as_view(), name="proxy-status"),
    path("proxy/<path:path>", views.ProxyView.as_view(), name="proxy"),
    # The middleware takes the slash off "/proxy/".
    path("proxy", views.ProxyRootView.as_view(), name="proxy-root"),
]

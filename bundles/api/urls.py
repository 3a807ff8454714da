from django.urls import path

from bundles.api import views

urlpatterns = [
    path("bundles", views.BundlesView.as_view()),
    path("bundles/<uuid:bundle_id>", views.BundleView.as_view()),
    path("bundles/<uuid:bundle_id>/purchase", views.PurchaseView.as_view()),
]

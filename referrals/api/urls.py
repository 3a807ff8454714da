from django.urls import path

from referrals.api import views

urlpatterns = [path("users/me/referrals", views.ReferralsView.as_view())]

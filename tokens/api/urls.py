from django.urls import path

from tokens.api import gifts, views

urlpatterns = [
    path("tokens/prices", views.PricesView.as_view()),
    path("tokens/purchase", views.PurchaseView.as_view()),
    path("tokens/my-tokens", views.MyTokensView.as_view()),
    path("tokens/check", views.CheckView.as_view()),
    path("tokens/<uuid:token_id>", views.TokenView.as_view()),
    path("tokens/<uuid:token_id>/rotate", views.RotateView.as_view()),
    path("tokens/<uuid:token_id>/release-device", views.ReleaseDeviceView.as_view()),
    path("tokens/<uuid:token_id>/gift", gifts.GiveView.as_view()),
    path("gifts", gifts.GiftsView.as_view()),
    path("gifts/<uuid:gift_id>", gifts.GiftView.as_view()),
    path("gifts/<str:code>/claim", gifts.ClaimView.as_view()),
    path("users/me/auto-renewal", views.RenewalTermsView.as_view()),
    path("users/me/tier", views.OwnTierView.as_view()),
    path("tiers", views.TiersView.as_view()),
]

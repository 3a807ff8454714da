from django.urls import path

from wallet.api import views

urlpatterns = [
    path("currency/balance", views.BalanceView.as_view()),
    path("currency/transactions", views.TransactionsView.as_view()),
    path("currency/statement", views.StatementView.as_view()),
    path("currency/mock-purchase", views.MockPurchaseView.as_view()),
]

from django.urls import path

from wallet.api import payments, views

urlpatterns = [
    path("currency/balance", views.BalanceView.as_view()),
    path("currency/transactions", views.TransactionsView.as_view()),
    path("currency/statement", views.StatementView.as_view()),
    path("currency/mock-purchase", views.MockPurchaseView.as_view()),
    path("currency/rates", payments.RatesView.as_view()),
    path("currency/purchase", payments.PurchaseView.as_view()),
    path("currency/payments", payments.PaymentsView.as_view()),
    path("currency/payments/<uuid:payment_id>", payments.PaymentView.as_view()),
    path("currency/admin/simulate-payment/<uuid:payment_id>", payments.SimulatePaymentView.as_view()),
    path("webhooks/payment", payments.NotificationView.as_view()),
    path("webhooks/payment/<slug:provider>", payments.NamedNotificationView.as_view()),
    path("webhooks/mock-payment", payments.MockPaymentView.as_view(), name="mock-payment"),
]

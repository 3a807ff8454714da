"""Payments and rates in requests and answers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from wallet.models import ExchangeRate, Payment
from wallet.payments.exchange import price_of_one, znc_per_unit
from wallet.payments.providers.base import in_digits
from zenzefi.lib.money import AmountField, MoneyField

#: More than the largest balance costs in any currency there is.
MAX_CURRENCY_AMOUNT = Decimal(10) ** 14


class CurrencyAmountField(AmountField):
    """A positive amount with up to three decimal places; how many the currency has is checked later."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(decimal_places=3, max_value=MAX_CURRENCY_AMOUNT, **kwargs)


class RateSerializer(serializers.Serializer[ExchangeRate]):
    currency = serializers.CharField(source="currency_id", help_text=_("ISO 4217."))
    name = serializers.CharField(source="currency.name")
    minor_unit_digits = serializers.IntegerField(source="currency.minor_unit_digits")
    znc_price = serializers.SerializerMethodField(help_text=_("What 1 ZNC costs, in the currency."))
    znc_per_unit = serializers.SerializerMethodField(help_text=_("How many ZNC one unit of the currency buys."))
    effective_from = serializers.DateTimeField()

    def get_znc_price(self, rate: ExchangeRate) -> str:
        return price_of_one(rate.znc_amount, rate.currency_amount)

    def get_znc_per_unit(self, rate: ExchangeRate) -> str:
        return znc_per_unit(rate.znc_amount, rate.currency_amount)


class StartPaymentSerializer(serializers.Serializer[Any]):
    amount_znc = AmountField(required=False, help_text=_("How many ZNC to buy; or give amount."))
    amount = CurrencyAmountField(required=False, help_text=_("How much to pay, in the currency; or give amount_znc."))
    return_url = serializers.CharField(
        max_length=2048,
        help_text=_("Where the customer goes after paying: our own pages or the desktop client's."),
    )
    currency = serializers.RegexField(r"\A[A-Z]{3}\Z", default="RUB", help_text=_("ISO 4217."))
    provider = serializers.SlugField(required=False, max_length=32)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("amount_znc" in attrs) == ("amount" in attrs):
            raise serializers.ValidationError({"amount_znc": [_("Give either amount_znc or amount.")]})
        return attrs


class PaymentSerializer(serializers.Serializer[Payment]):
    payment_id = serializers.UUIDField(source="id")
    payment_url = serializers.CharField(help_text=_("Where to pay; empty when the provider could not be reached."))
    status = serializers.ChoiceField(choices=Payment.Status.choices)
    amount_znc = MoneyField()
    amount = serializers.SerializerMethodField(help_text=_("In the currency, with its decimal places."))
    currency = serializers.CharField(source="currency_id")
    amount_rub = serializers.SerializerMethodField(help_text=_("The amount when the currency is RUB, else null."))
    rate = serializers.SerializerMethodField(help_text=_("What 1 ZNC cost when the payment was agreed on."))
    znc_per_unit = serializers.SerializerMethodField(help_text=_("How many ZNC one unit of the currency bought then."))
    refunded_amount = serializers.SerializerMethodField(help_text=_("Paid back so far, in the currency."))
    provider = serializers.CharField()
    receipt_number = serializers.CharField(allow_null=True)
    created_at = serializers.DateTimeField()
    succeeded_at = serializers.DateTimeField(allow_null=True)

    def get_amount(self, payment: Payment) -> str:
        return in_digits(payment.amount, payment.currency)

    def get_amount_rub(self, payment: Payment) -> str | None:
        return self.get_amount(payment) if payment.currency_id == "RUB" else None

    def get_rate(self, payment: Payment) -> str:
        return price_of_one(payment.rate_znc_amount, payment.rate_currency_amount)

    def get_znc_per_unit(self, payment: Payment) -> str:
        return znc_per_unit(payment.rate_znc_amount, payment.rate_currency_amount)

    def get_refunded_amount(self, payment: Payment) -> str:
        return in_digits(payment.refunded_amount, payment.currency)


class ReceivedSerializer(serializers.Serializer[Any]):
    received = serializers.BooleanField()


class MockPaymentFormSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(max_length=512)
    action = serializers.ChoiceField(choices=["pay", "cancel"])

"""The wallet in requests and answers."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from wallet.models import Transfer
from zenzefi.lib.money import AmountField, MoneyField

CURRENCY = "ZNC"


class BalanceSerializer(serializers.Serializer[Any]):
    balance = MoneyField()
    currency = serializers.SerializerMethodField(help_text=_("Always ZNC."))
    owed = MoneyField(help_text=_("What a claw-back could not take; later credits pay it first."))

    def get_currency(self, _: Any) -> str:
        return CURRENCY


class TransactionTypeField(serializers.ChoiceField):
    """A kind of transfer: lower case in answers, any case in requests."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=[(kind.lower(), label) for kind, label in Transfer.Kind.choices], **kwargs)

    def to_internal_value(self, data: Any) -> str:
        value: str = super().to_internal_value(data.lower() if isinstance(data, str) else data)
        return value.upper()

    def to_representation(self, value: str) -> str:
        return value.lower()


class TransactionFilterSerializer(serializers.Serializer[Any]):
    transaction_type = TransactionTypeField(required=False)
    created_after = serializers.DateTimeField(required=False)
    created_before = serializers.DateTimeField(required=False)


class TransactionSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="public_id")
    amount = MoneyField(source="signed", help_text=_("Negative when it left the account."))
    transaction_type = TransactionTypeField(source="kind")
    description = serializers.CharField()
    payment_id = serializers.SerializerMethodField(help_text=_("The payment it came from, if any."))
    balance_after = MoneyField()
    created_at = serializers.DateTimeField()

    def get_payment_id(self, transaction: dict[str, Any]) -> str | None:
        kind, _, rest = transaction["source"].partition(":")
        return rest.partition(":")[0] if kind == "payment" else None


class MockPurchaseSerializer(serializers.Serializer[Any]):
    amount = AmountField(help_text=_("ZNC to credit."))


class MockPurchaseResultSerializer(serializers.Serializer[Any]):
    success = serializers.BooleanField()
    amount = MoneyField()
    new_balance = MoneyField()
    message = serializers.CharField()

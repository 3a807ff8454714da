"""The wallet in requests and answers."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from wallet.models import Transfer
from zenzefi.lib import clock
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


class MomentField(serializers.DateTimeField):
    """A moment, or a day: ``to`` a day includes it, ``from`` a day starts with it (UTC)."""

    def __init__(self, *, whole_day: bool = False, **kwargs: Any) -> None:
        self._whole_day = whole_day
        super().__init__(default_timezone=UTC, **kwargs)

    def to_internal_value(self, value: Any) -> datetime:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
            try:
                day = datetime.combine(date.fromisoformat(value), time(tzinfo=UTC))
                return day + timedelta(days=1) if self._whole_day else day
            except (ValueError, OverflowError):
                self.fail("invalid", format="YYYY-MM-DD")
        return super().to_internal_value(value)


class StatementQuerySerializer(serializers.Serializer[Any]):
    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        # "from" is a word of Python, so the fields cannot be declared as attributes.
        return {
            "from": MomentField(
                required=False, help_text=_("A day or a moment, included; by default when the user registered.")
            ),
            "to": MomentField(
                whole_day=True, required=False, help_text=_("A day, included, or a moment, excluded; by default now.")
            ),
            "format": serializers.ChoiceField(choices=["json", "csv"], default="json"),
        }

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs.setdefault("from", self.context["registered_at"])
        if attrs["from"] > attrs.setdefault("to", clock.now()):
            raise serializers.ValidationError({"from": [_("The end must not come before the start.")]})
        return attrs


class StatementRowSerializer(serializers.Serializer[Any]):
    created_at = serializers.DateTimeField()
    id = serializers.UUIDField()
    transaction_type = TransactionTypeField()
    description = serializers.CharField()
    amount = MoneyField(help_text=_("Negative when it left the account."))
    balance_after = MoneyField()
    owed_after = MoneyField()


class StatementSerializer(serializers.Serializer[Any]):
    """For the documentation: the answer itself is streamed."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {
            "from": serializers.DateTimeField(),
            "to": serializers.DateTimeField(),
            "currency": serializers.CharField(),
            "opening_balance": MoneyField(),
            "opening_owed": MoneyField(),
            "closing_balance": MoneyField(),
            "closing_owed": MoneyField(),
            "rows": StatementRowSerializer(many=True),
        }


class MockPurchaseSerializer(serializers.Serializer[Any]):
    amount = AmountField(help_text=_("ZNC to credit."))


class MockPurchaseResultSerializer(serializers.Serializer[Any]):
    success = serializers.BooleanField()
    amount = MoneyField()
    new_balance = MoneyField()
    message = serializers.CharField()

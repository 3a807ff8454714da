"""What a payment provider must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import Any, ClassVar

from wallet.models import Currency, Payment, PaymentRefund


class Told(StrEnum):
    """What a provider says about the payment itself; refunds and disputes are told beside it."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    CANCELED = "canceled"
    #: Nothing: the message was about a refund or a dispute only.
    UNSAID = "unsaid"


@dataclass(frozen=True, slots=True)
class DisputeState:
    """``outcome`` is a value of :class:`~wallet.models.PaymentDispute.Outcome`; ``amount`` in the currency."""

    id: str
    outcome: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class ProviderState:
    """What a provider told about a payment, authenticated.

    ``amount`` and ``currency`` are what was paid and must be given with :attr:`Told.SUCCEEDED`. ``refunded`` is
    cumulative, in the currency. Facts may arrive in any order and repeat; none takes an earlier one back.
    """

    told: Told
    amount: Decimal | None = None
    currency: str | None = None
    refunded: Decimal = Decimal(0)
    disputes: tuple[DisputeState, ...] = ()
    provider_payment_id: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Created:
    """A payment the provider has opened, and the page where the customer pays."""

    provider_payment_id: str
    payment_url: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Notification:
    """An authenticated message. ``event_id`` is the same when the provider sends it again."""

    event_id: str
    kind: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a stored message says about one of our payments.

    ``conclusive`` is false when the provider, asked again, did not confirm it; the same message may then come to
    mean something later.
    """

    payment: Payment
    state: ProviderState
    conclusive: bool = True


class PaymentProvider(ABC):
    """One provider. Every method but :meth:`authenticate` may call it, with bounded time, so none is called inside
    a database transaction.

    Calls raise :class:`~wallet.exceptions.ProviderUnavailable` when there is no usable answer, and
    :class:`~wallet.exceptions.ProviderRefused` when the answer is no.
    """

    name: ClassVar[str]

    def takes(self, currency: Currency) -> bool:
        """Return whether payments in the currency are taken."""
        return True

    @abstractmethod
    def create(self, payment: Payment) -> Created:
        """Open the payment at the provider; repeating it for the same payment opens no second one."""

    @abstractmethod
    def fetch(self, payment: Payment) -> ProviderState:
        """Ask for everything that is known about the payment."""

    @abstractmethod
    def refund(self, payment: Payment, refund: PaymentRefund) -> str:
        """Pay back ``refund.amount`` and return the provider's id; repeating it for the same refund pays nothing."""

    @abstractmethod
    def authenticate(self, *, body: bytes, headers: Mapping[str, str], address: str) -> Notification:
        """Return the message that these exact bytes carry.

        Raises :class:`~wallet.exceptions.InvalidNotification` unless the provider sent it, and
        :class:`~wallet.exceptions.MalformedNotification`.
        """

    @abstractmethod
    def interpret(self, payload: dict[str, Any]) -> Finding | None:
        """Return what a stored message says, ``None`` when it is about nothing of ours."""


def to_minor_units(amount: Decimal, currency: Currency) -> int:
    """Return an amount in the currency's smallest unit: 10.50 EUR is 1050, 1050 JPY is 1050.

    Raises :class:`ValueError` for an amount that is no whole number of them.
    """
    scaled = amount.scaleb(currency.minor_unit_digits)
    if scaled != scaled.to_integral_value(rounding=ROUND_HALF_UP):
        raise ValueError(f"{amount} is no whole number of minor units of {currency.code}.")
    return int(scaled)


def from_minor_units(amount: int, currency: Currency) -> Decimal:
    """Return the amount that is so many of the currency's smallest units."""
    return Decimal(amount).scaleb(-currency.minor_unit_digits)


def in_digits(amount: Decimal, currency: Currency) -> str:
    """Write an amount with the currency's decimal places, as providers and clients expect it."""
    return f"{amount:.{currency.minor_unit_digits}f}"

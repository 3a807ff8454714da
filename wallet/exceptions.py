"""What the wallet refuses."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from zenzefi.lib.errors import Conflict, DomainError, NotFound, ServiceUnavailable


class InsufficientBalance(DomainError):
    """The account holds less than the flow would take; nothing was taken."""

    status = 402
    code = "insufficient_balance"
    detail = _("The balance is not sufficient.")


class DebtOutstanding(InsufficientBalance):
    """The account owes what a refunded or disputed payment left unpaid; nothing is sold until it is paid."""

    code = "debt_outstanding"
    detail = _("The account owes money from a payment that was taken back. Please top up first.")


class BalanceLimitExceeded(DomainError):
    """A credit would lift the balance above 99,999,999.99 ZNC; nothing was credited."""

    status = 400
    code = "balance_limit_exceeded"
    detail = _("The balance would exceed the largest amount an account may hold.")


class AlreadyPosted(Conflict):
    """A transfer of this kind from this source exists: the posting happened before."""

    code = "already_posted"
    detail = _("This was posted before.")


class MockPaymentsDisabled(NotFound):
    """The mock provider is not among ``PAYMENT_PROVIDERS``."""


class CurrencyNotAvailable(DomainError):
    """The currency is unknown, switched off or has no rate."""

    code = "currency_not_available"
    detail = _("This currency is not available.")


class ProviderNotAvailable(DomainError):
    """The provider is not among ``PAYMENT_PROVIDERS`` or does not take the currency."""

    code = "payment_provider_not_available"
    detail = _("This payment provider is not available.")


class AmountNotPayable(DomainError):
    """The amount buys less than 0.01 ZNC, or has more decimal places than the currency."""

    code = "amount_not_payable"
    detail = _("This amount cannot be paid in this currency.")


class ReturnUrlRefused(DomainError):
    """``return_url`` does not lead to one of our own origins or to the desktop client's local page."""

    code = "return_url_refused"
    detail = _("The return address is not allowed.")


class PaymentNotFound(NotFound):
    """There is no such payment, or it is somebody else's."""


class PaymentNotPayable(Conflict):
    """The payment is no longer pending."""

    code = "payment_not_pending"
    detail = _("The payment is no longer pending.")


class PaymentNotRefundable(Conflict):
    """The payment was not paid, nothing of it is left, or another refund of it is under way."""

    code = "payment_not_refundable"
    detail = _("The payment cannot be refunded.")


class PaymentMismatch(Conflict):
    """The provider says that something else was paid than what was agreed; nothing was credited."""

    code = "payment_mismatch"
    detail = _("The provider reports another amount than the one agreed.")


class ProviderUnavailable(ServiceUnavailable):
    """The provider did not answer, or not as documented."""

    code = "payment_provider_unavailable"
    detail = _("The payment provider does not answer. Please try again.")


class ProviderRefused(DomainError):
    """The provider understood the request and refused it."""

    status = 502
    code = "payment_provider_refused"
    detail = _("The payment provider refused the request.")


class InvalidNotification(DomainError):
    """A notification's signature is missing or wrong, or it comes from where the provider does not send from."""

    status = 403
    code = "invalid_signature"
    detail = _("The signature is not valid.")


class MalformedNotification(DomainError):
    """A notification that is not what the provider documents."""

    code = "malformed_notification"
    detail = _("The notification is malformed.")


class NotificationNotProcessed(ServiceUnavailable):
    """What the notification tells could not be carried out; it should be sent again."""

    code = "notification_not_processed"
    detail = _("The notification could not be processed. Please send it again.")

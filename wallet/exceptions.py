"""What the wallet refuses."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from zenzefi.lib.errors import Conflict, DomainError, NotFound


class InsufficientBalance(DomainError):
    """The account holds less than the flow would take; nothing was taken."""

    status = 402
    code = "insufficient_balance"
    detail = _("The balance is not sufficient.")


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

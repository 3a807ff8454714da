"""Taking back the share of a bonus whose purchase is refunded."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Q
from django.utils.translation import gettext as _

from notifications.services import record
from referrals.models import ReferralBonus
from referrals.selectors import masked
from referrals.services.award import source_of
from wallet.services import SystemAccount, TransferKind, claw_back, demand_transaction
from zenzefi.lib.money import ZERO


def referrer_of_purchase(purchase_source: str) -> Any | None:
    """Return whose account a refund must lock together with the payee's: who got, or may get, a bonus for the purchase.

    Read before any lock: the bonus is made with the purchase and keeps its referrer, and a rejection is final. A held
    one counts, as it may be approved while the refund waits for its locks.
    """
    bonuses = ReferralBonus.objects.filter(~Q(status=ReferralBonus.Status.REJECTED), purchase_source=purchase_source)
    return get_user_model()._default_manager.filter(pk__in=bonuses.values("referrer")).first()


def take_back_for_refund(
    *, purchase_source: str, refund_source: str, refunded: Decimal, referrer_account: Any
) -> Decimal:
    """Take back the share of a bonus that a refund undoes, in the refund's own transaction; return the ZNC taken.

    ``refund_source`` is the source of the REFUND posting, ``refunded`` its amount. What the bonus should be is
    computed from all refunds of the purchase together, so that many small ones take as much as one large one, and
    never more than the bonus. What the referrer no longer has becomes owed.

    Raises :class:`~django.db.transaction.TransactionManagementError` outside a transaction.
    """
    demand_transaction()
    bonus = (
        ReferralBonus.objects.select_for_update(of=("self",), no_key=True)
        .select_related("referee", "referrer")
        .get(purchase_source=purchase_source)
    )
    bonus.refunded += refunded
    excess = ZERO
    if bonus.status == ReferralBonus.Status.PAID:
        excess = bonus.net - bonus.due
    if excess > 0:
        claw_back(
            account=referrer_account,
            counterparty=SystemAccount.PROMOTIONS,
            amount=excess,
            kind=TransferKind.REFERRAL_REVERSAL,
            source=f"{source_of(bonus)}:{refund_source}",
            description=_("Referral bonus for %(username)s taken back after a refund")
            % {"username": masked(bonus.referee.username)},
        )
        bonus.taken_back += excess
        record(
            "referral.bonus_reversed",
            bonus.referrer,
            {
                "bonus_id": str(bonus.id),
                "amount": str(excess),
                "balance": str(referrer_account.balance),
                "owed": str(referrer_account.owed),
            },
        )
    bonus.save(update_fields=["refunded", "taken_back"])
    return excess

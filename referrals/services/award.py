"""The bonus for a referee's first qualifying purchase."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import Exists, OuterRef
from django.utils.translation import gettext as _

from notifications.services import record
from referrals.models import BONUS_RATE, QUALIFIES_ABOVE, ReferralBonus
from referrals.selectors import masked
from referrals.suspicion import suspicions_about
from wallet.exceptions import BalanceLimitExceeded
from wallet.services import SystemAccount, TransferKind, credit, demand_transaction
from zenzefi.lib import clock
from zenzefi.lib.money import ZERO, floor_cents


def referrer_awaiting_bonus(buyer: Any) -> Any | None:
    """Return whose account a purchase must lock together with the buyer's: the referrer, while no bonus was earned.

    Read before any lock: who referred never changes, and a bonus that was earned stays earned, so what this decides
    cannot become wrong but by locking one account in vain. No query for a buyer whom nobody referred.
    """
    if buyer.referred_by_id is None:
        return None
    earned = ReferralBonus.objects.filter(referee=buyer.pk, referrer=OuterRef("pk"))
    return get_user_model()._default_manager.filter(~Exists(earned), pk=buyer.referred_by_id).first()


def award_for_purchase(
    *, referee: Any, referrer: Any, referrer_account: Any, paid: Decimal, purchase_source: str
) -> ReferralBonus | None:
    """Give the referrer their share of a purchase, in the purchase's own transaction; ``None`` if it earns none.

    ``referrer`` comes from :func:`referrer_awaiting_bonus`, and the buyer's and the referrer's accounts were locked in
    one call before anything was posted: the buyer's lock is what keeps two purchases at once from both being the first.
    ``purchase_source`` is the source of the PURCHASE posting.

    The bonus is held for staff when the two look like one person, when the referrer is disabled, or when their
    balance cannot take it: the purchase goes through in any case.

    Raises :class:`~django.db.transaction.TransactionManagementError` outside a transaction.
    """
    demand_transaction()
    if paid <= QUALIFIES_ABOVE or ReferralBonus.objects.filter(referee=referee).exists():
        return None
    since = clock.now() - timedelta(days=settings.REFERRAL_FRAUD_WINDOW_DAYS)
    suspicions = suspicions_about(referee, referrer, since=since)
    if not referrer.is_active:
        suspicions.append(ReferralBonus.Suspicion.REFERRER_DISABLED.value)
    bonus = ReferralBonus(
        referee=referee,
        referrer=referrer,
        purchase_source=purchase_source,
        purchase_paid=paid,
        amount=floor_cents(paid * BONUS_RATE),
        status=ReferralBonus.Status.HELD,
        suspicions=suspicions,
    )
    if not suspicions:
        try:
            pay_out(bonus, referrer_account)
        except BalanceLimitExceeded:
            bonus.suspicions = [ReferralBonus.Suspicion.BALANCE_LIMIT.value]
    bonus.save(force_insert=True)
    if bonus.status == ReferralBonus.Status.HELD:
        # For staff: neither of the two learns that they are looked at.
        record("referral.bonus_held", None, {"bonus_id": str(bonus.id), "suspicions": bonus.suspicions})
    return bonus


def pay_out(bonus: ReferralBonus, account: Any) -> None:
    """Credit what is due of a bonus to its referrer's locked account, and mark it paid without saving it.

    Raises :class:`~wallet.exceptions.BalanceLimitExceeded`; nothing is posted then.
    """
    due = bonus.due
    assert due > ZERO
    credit(
        account=account,
        counterparty=SystemAccount.PROMOTIONS,
        amount=due,
        kind=TransferKind.REFERRAL_BONUS,
        source=source_of(bonus),
        description=_("Referral bonus for %(username)s") % {"username": masked(bonus.referee.username)},
    )
    bonus.paid_out = due
    bonus.status = ReferralBonus.Status.PAID
    record(
        "referral.bonus",
        bonus.referrer,
        {
            "bonus_id": str(bonus.id),
            "referee": masked(bonus.referee.username),
            "amount": str(due),
            "balance": str(account.balance),
        },
    )


def source_of(bonus: ReferralBonus) -> str:
    """Return how postings name the bonus they come from."""
    return f"referral:{bonus.id}"

"""Everything that changes referral bonuses.

The order of locks in every flow: accounts of the wallet, then tokens, then bonuses.
"""

from referrals.models import ReferralBonus
from referrals.services.award import award_for_purchase, referrer_awaiting_bonus
from referrals.services.claw_back import referrer_of_purchase, take_back_for_refund
from referrals.services.review import approve_bonus, reject_bonus
from referrals.suspicion import register as register_evidence

#: What other apps name when they register evidence.
Suspicion = ReferralBonus.Suspicion

__all__ = [
    "Suspicion",
    "approve_bonus",
    "award_for_purchase",
    "referrer_awaiting_bonus",
    "referrer_of_purchase",
    "register_evidence",
    "reject_bonus",
    "take_back_for_refund",
]

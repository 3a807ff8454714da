"""What must hold between referral bonuses and the ledger."""

from __future__ import annotations

from wallet.reconciliation import Check, register


def register_checks() -> None:
    """Add these checks to ``manage.py reconcile``."""
    register(
        Check(
            "each referral bonus is one posting of what was paid out",
            """
            SELECT coalesce('bonus ' || bonus.id, posted.source),
                   'paid out ' || coalesce(bonus.paid_out::text, 'nothing')
                   || ' but posted ' || coalesce(posted.amount, 0)
              FROM referrals_referralbonus AS bonus
              FULL JOIN (SELECT source, amount FROM wallet_transfer WHERE kind = 'REFERRAL_BONUS') AS posted
                ON posted.source = 'referral:' || bonus.id
             WHERE coalesce(bonus.paid_out, -1) <> coalesce(posted.amount, 0)
            """,
        )
    )
    register(
        Check(
            "what was taken back of each referral bonus is what its reversals sum to",
            """
            SELECT coalesce('bonus ' || bonus.id, reversal.source),
                   'taken back ' || coalesce(bonus.taken_back::text, 'nothing')
                   || ' but its reversals sum to ' || coalesce(reversal.total, 0)
              FROM referrals_referralbonus AS bonus
              FULL JOIN (SELECT split_part(source, ':', 1) || ':' || split_part(source, ':', 2) AS source,
                                sum(amount) AS total
                           FROM wallet_transfer WHERE kind = 'REFERRAL_REVERSAL' GROUP BY 1) AS reversal
                ON reversal.source = 'referral:' || bonus.id
             WHERE coalesce(bonus.taken_back, -1) <> coalesce(reversal.total, 0)
            """,
        )
    )
    register(
        Check(
            "each paid referral bonus is worth its share of what was not refunded",
            """
            SELECT 'bonus ' || id, 'is ' || (paid_out - taken_back) || ' of ' || amount || ', refunded ' || refunded
                   || ' of ' || purchase_paid
              FROM referrals_referralbonus
             WHERE status = 'paid'
               AND paid_out - taken_back <> amount - div(amount * refunded * 100, purchase_paid) / 100
            """,
        )
    )

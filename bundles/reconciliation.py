"""What must hold between bundles, their tokens and the ledger."""

from __future__ import annotations

from wallet.reconciliation import Check, register


def register_checks() -> None:
    """Add these checks to ``manage.py reconcile``."""
    register(
        Check(
            "each bundle was paid by one posting, which its tokens' shares add up to",
            """
            SELECT coalesce('bundle purchase ' || purchase.id, posted.source),
                   'paid ' || coalesce(purchase.paid::text, 'nothing') || ', posted ' || coalesce(posted.amount, 0)
                   || ', shares of ' || coalesce(shares.count, 0) || ' tokens add up to ' || coalesce(shares.total, 0)
              FROM bundles_bundlepurchase AS purchase
              FULL JOIN (SELECT source, amount FROM wallet_transfer
                          WHERE kind = 'PURCHASE' AND source LIKE 'bundle:%') AS posted
                ON posted.source = 'bundle:' || purchase.id
              LEFT JOIN (SELECT purchase_source, sum(paid) AS total, count(*) AS count
                           FROM tokens_accesstoken GROUP BY purchase_source) AS shares
                ON shares.purchase_source = 'bundle:' || purchase.id
             WHERE coalesce(purchase.paid, -1) <> coalesce(posted.amount, 0)
                OR purchase.paid <> coalesce(shares.total, 0)
                OR purchase.token_count <> coalesce(shares.count, 0)
            """,
        )
    )

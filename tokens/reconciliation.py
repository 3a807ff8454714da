"""What must hold between access tokens and the ledger."""

from __future__ import annotations

from wallet.reconciliation import Check, register

_REFUNDS = """
    SELECT source, sum(amount) AS total, count(*) AS postings
      FROM wallet_transfer WHERE kind = 'REFUND' AND source LIKE 'token:%' GROUP BY source
"""


def register_checks() -> None:
    """Add these checks to ``manage.py reconcile``."""
    register(
        Check(
            "no token was refunded above what was paid",
            """
            SELECT 'token ' || id, 'paid ' || paid || ', refunded ' || refunded
              FROM tokens_accesstoken WHERE refunded < 0 OR refunded > paid OR paid < 0
            """,
        )
    )
    register(
        Check(
            "each token's refund is one posting of the same amount",
            f"""
            SELECT coalesce('token ' || token.id, refund.source),
                   'refunded ' || coalesce(token.refunded::text, 'nothing') || ' but '
                   || coalesce(refund.postings, 0) || ' postings of ' || coalesce(refund.total, 0)
              FROM tokens_accesstoken AS token
              FULL JOIN ({_REFUNDS}) AS refund ON refund.source = 'token:' || token.id
             WHERE coalesce(token.refunded, -1) <> coalesce(refund.total, 0) OR refund.postings > 1
            """,
        )
    )
    register(
        Check(
            "each token bought alone was paid by one posting of the same amount",
            """
            SELECT coalesce('token ' || token.id, purchase.source),
                   'paid ' || coalesce(token.paid::text, 'nothing') || ' but posted ' || coalesce(purchase.amount, 0)
              FROM (SELECT * FROM tokens_accesstoken WHERE purchase_source = 'token:' || id) AS token
              FULL JOIN (SELECT source, amount FROM wallet_transfer
                          WHERE kind = 'PURCHASE' AND source LIKE 'token:%') AS purchase
                ON purchase.source = 'token:' || token.id
             WHERE coalesce(token.paid, -1) <> coalesce(purchase.amount, 0)
            """,
        )
    )
    register(
        Check(
            "refunds of each purchase that earned a bonus are those of its tokens",
            """
            SELECT 'bonus ' || bonus.id,
                   'refunded ' || bonus.refunded || ' but its tokens were refunded ' || coalesce(token.total, 0)
              FROM referrals_referralbonus AS bonus
              LEFT JOIN (SELECT purchase_source, sum(refunded) AS total FROM tokens_accesstoken
                          GROUP BY purchase_source) AS token ON token.purchase_source = bonus.purchase_source
             WHERE bonus.status <> 'rejected' AND bonus.refunded <> coalesce(token.total, 0)
            """,
        )
    )
    register(
        Check(
            "a successor goes on where its predecessor ends, for the same owner",
            """
            SELECT 'token ' || next.id, 'starts at ' || next.activated_at || ', owned by ' || next.owner_id
                   || ' but renews ' || token.id || ' until ' || coalesce(token.expires_at::text, 'nothing')
                   || ', owned by ' || token.owner_id
              FROM tokens_accesstoken AS next
              JOIN tokens_accesstoken AS token ON token.id = next.predecessor_id
             WHERE next.owner_id <> token.owner_id OR token.renewed_at IS NULL
                OR next.activated_at < token.expires_at OR token.expires_at IS NULL
            """,
        )
    )
    register(
        Check(
            "a token is held while a gift of it is open, and only then",
            """
            SELECT coalesce('token ' || token.id, 'gift ' || gift.id),
                   CASE WHEN gift.id IS NULL THEN 'held without an open gift' ELSE 'open but its token is not held' END
              FROM (SELECT id FROM tokens_accesstoken WHERE held_at IS NOT NULL) AS token
              FULL JOIN (SELECT id, token_id FROM tokens_gift WHERE status IN ('awaiting_approval', 'pending')) AS gift
                ON gift.token_id = token.id
             WHERE token.id IS NULL OR gift.id IS NULL
            """,
        )
    )
    register(
        Check(
            "each tier's present month was paid by one posting, and its refund is one",
            """
            SELECT 'tier subscription ' || subscription.id,
                   'price ' || price || ', refunded ' || refunded || ' but posted ' || coalesce(paid.amount, 0)
                   || ' and ' || coalesce(back.amount, 0)
              FROM tokens_tiersubscription AS subscription
              LEFT JOIN wallet_transfer AS paid
                ON paid.kind = 'SUBSCRIPTION' AND paid.source = 'tier:' || subscription.id || ':' || month
              LEFT JOIN wallet_transfer AS back
                ON back.kind = 'REFUND' AND back.source = 'tier:' || subscription.id || ':' || month
             WHERE price <> coalesce(paid.amount, 0) OR refunded <> coalesce(back.amount, 0)
            """,
        )
    )
    register(
        Check(
            "a token that was given away belongs to whoever claimed it last",
            """
            SELECT 'token ' || token.id, 'owned by ' || token.owner_id || ' but claimed by ' || gift.claimed_by_id
              FROM (SELECT DISTINCT ON (token_id) token_id, claimed_by_id FROM tokens_gift
                     WHERE status = 'claimed' ORDER BY token_id, closed_at DESC) AS gift
              JOIN tokens_accesstoken AS token ON token.id = gift.token_id
             WHERE token.owner_id <> gift.claimed_by_id
            """,
        )
    )
    register(
        Check(
            "each token names who paid for it",
            """
            SELECT 'token ' || token.id,
                   'paid by ' || coalesce(account.user_id::text, 'the platform') || ' but a refund would go to '
                   || coalesce(token.payer_id, token.owner_id)
              FROM tokens_accesstoken AS token
              JOIN wallet_transfer AS purchase
                ON purchase.kind = 'PURCHASE' AND purchase.source = token.purchase_source
              JOIN wallet_account AS account ON account.id = purchase.debit_account_id
             WHERE account.user_id IS DISTINCT FROM coalesce(token.payer_id, token.owner_id)
            """,
        )
    )

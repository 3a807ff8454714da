"""Proof that payments and the ledger agree."""

from __future__ import annotations

from wallet.reconciliation import Check, register

_CHECKS = [
    Check(
        "each paid payment was credited once, with what was agreed, and no other was",
        """
        SELECT 'payment ' || coalesce(payment.id::text, transfer.source),
               coalesce(payment.status, 'none') || ' of ' || coalesce(payment.amount_znc, 0) || ' but credited '
               || coalesce(transfer.amount::text, 'nothing')
          FROM (SELECT * FROM wallet_payment WHERE succeeded_at IS NOT NULL) AS payment
          FULL JOIN (SELECT * FROM wallet_transfer WHERE kind = 'DEPOSIT' AND source LIKE 'payment:%') AS transfer
            ON transfer.source = 'payment:' || payment.id
          LEFT JOIN wallet_account AS account ON account.id = transfer.credit_account_id
         WHERE payment.amount_znc IS DISTINCT FROM transfer.amount OR payment.user_id IS DISTINCT FROM account.user_id
        """,
    ),
    Check(
        "what payments hold back equals the chargebacks posted for them",
        """
        SELECT 'payment ' || payment.id,
               'holds back ' || payment.reversed_znc || ' but its postings took ' || coalesce(posted.taken, 0)
          FROM wallet_payment AS payment
          LEFT JOIN (SELECT split_part(source, ':', 2) AS id,
                            sum(CASE kind WHEN 'CHARGEBACK' THEN amount ELSE -amount END) AS taken
                       FROM wallet_transfer
                      WHERE kind IN ('CHARGEBACK', 'CHARGEBACK_REVERSAL') AND source LIKE 'payment:%'
                      GROUP BY 1)
               AS posted ON posted.id = payment.id::text
         WHERE payment.reversed_znc <> coalesce(posted.taken, 0)
        """,
    ),
    Check(
        "receipt numbers have no gap",
        """
        SELECT 'receipts of ' || series.year,
               series.last_number || ' numbers given but ' || coalesce(given.count, 0) || ' stored, up to '
               || coalesce(given.last, 0)
          FROM wallet_receiptseries AS series
          LEFT JOIN (SELECT split_part(receipt_number, '-', 1)::int AS year, count(*) AS count,
                            max(split_part(receipt_number, '-', 2)::int) AS last
                       FROM wallet_payment WHERE receipt_number IS NOT NULL GROUP BY 1)
               AS given ON given.year = series.year
         WHERE (series.last_number, series.last_number) IS DISTINCT FROM (given.count, given.last)
        """,
    ),
]


def register_checks() -> None:
    """Add the checks; called once, when the app is ready."""
    for check in _CHECKS:
        register(check)

"""Everything that changes the ledger."""

from wallet.models import Account, Transfer
from wallet.services.accounts import (
    demand_transaction,
    lock_accounts,
    lock_accounts_of,
    open_account,
    system_account,
    system_account_id,
)
from wallet.services.ledger import claw_back, credit, debit, transfer
from wallet.services.top_up import TopUp, demand_mock_payments, top_up_mock

#: What other apps name in a posting.
SystemAccount = Account.System
TransferKind = Transfer.Kind

__all__ = [
    "SystemAccount",
    "TopUp",
    "TransferKind",
    "claw_back",
    "credit",
    "debit",
    "demand_mock_payments",
    "demand_transaction",
    "lock_accounts",
    "lock_accounts_of",
    "open_account",
    "system_account",
    "system_account_id",
    "top_up_mock",
    "transfer",
]

"""The ledger: accounts, transfers, payments."""

"""What the wallet does when others say that something happened."""

from __future__ import annotations

from typing import Any

from django.dispatch import receiver

from accounts.signals import user_registered
from wallet.services.accounts import open_account


@receiver(user_registered)
def open_account_of_new_user(*, user: Any, **_: Any) -> None:
    """Open the account in the registration's own transaction. Users made otherwise get theirs when first needed."""
    open_account(user)

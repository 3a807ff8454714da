"""What business code calls to tell that something happened."""

from __future__ import annotations

from typing import Any

from django.db import connection
from django.db.transaction import TransactionManagementError

from notifications.models import OutboxEvent


def record(event: str, user: Any | None, data: dict[str, Any]) -> OutboxEvent:
    """Write an event to the outbox, inside the caller's transaction.

    ``event`` is a dotted name such as ``token.purchased``; ``data`` is JSON of ids, amounts as strings and ISO
    times, and never holds a secret. Channels read the outbox after commit, so an event is neither told before
    its cause is certain nor lost once it is.

    Raises :class:`~django.db.transaction.TransactionManagementError` outside a transaction.
    """
    if not connection.in_atomic_block:
        raise TransactionManagementError("record() must run in the transaction of what it records.")
    return OutboxEvent.objects.create(event=event, user=user, data=data)

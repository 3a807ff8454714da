"""Making tokens that a purchase has paid for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tokens import secrets
from tokens.models import AccessToken, Scope
from wallet.services import demand_transaction


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A stored token and the secret that is shown this once."""

    token: AccessToken
    secret: str

    def __repr__(self) -> str:
        return f"IssuedToken(token={self.token!r})"


def issue_tokens(
    *,
    owner: Any,
    purchase_source: str,
    scope: Scope,
    duration_hours: int,
    list_price: Decimal,
    shares: Sequence[Decimal],
) -> list[IssuedToken]:
    """Store one token for each share of a price that was paid together, in one statement.

    ``purchase_source`` names the PURCHASE posting that paid for all of them; ``shares`` are ZNC and add up to it,
    ``list_price`` is what one costs on its own at this moment.

    Raises :class:`~django.db.transaction.TransactionManagementError` outside the transaction that paid.
    """
    demand_transaction()
    issued = [
        new_token(
            owner=owner,
            purchase_source=purchase_source,
            scope=scope,
            duration_hours=duration_hours,
            list_price=list_price,
            paid=share,
        )
        for share in shares
    ]
    AccessToken.objects.bulk_create(one.token for one in issued)
    return issued


def new_token(*, token_id: uuid.UUID | None = None, **fields: Any) -> IssuedToken:
    """Return a token with a fresh secret, not stored yet."""
    secret = secrets.generate()
    own = {"id": token_id or uuid.uuid4(), "digest": secrets.digest(secret), "last_four": secret[-4:]}
    token = AccessToken(**own | fields)
    return IssuedToken(token=token, secret=secret)

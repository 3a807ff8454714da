"""What makes a referee look like their own referrer.

Each piece of evidence is a question about two users since a moment. The apps that know the answers register theirs
with :func:`register`: devices, for one, are known above this app.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from accounts.selectors import share_address
from referrals.models import ReferralBonus

#: Called with the referee, the referrer and the moment from which on things count.
Evidence = Callable[[Any, Any, datetime], bool]

_EVIDENCE: dict[str, list[Evidence]] = {
    ReferralBonus.Suspicion.SAME_ADDRESS: [
        lambda referee, referrer, since: share_address(referee, referrer, since=since),
    ],
}


def register(suspicion: str, evidence: Evidence) -> None:
    """Add a piece of evidence for a suspicion; called once for each, when the app that knows it is ready."""
    _EVIDENCE.setdefault(suspicion, []).append(evidence)


def suspicions_about(referee: Any, referrer: Any, *, since: datetime) -> list[str]:
    """Return why a bonus of these two should wait for a person's decision; empty when nothing speaks against it."""
    return [
        str(suspicion)
        for suspicion, pieces in _EVIDENCE.items()
        if any(holds(referee, referrer, since) for holds in pieces)
    ]

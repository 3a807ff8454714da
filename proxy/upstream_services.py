"""What changes the Zenzefi servers that requests are sent to, and what is written down of them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError, transaction

from notifications.services import record
from proxy.exceptions import ReasonMissing, TargetStateUnchanged
from proxy.models import UpstreamOutage, UpstreamTarget
from proxy.targets import seal_key
from zenzefi.lib import clock
from zenzefi.lib.transactions import in_transaction


@in_transaction
def save_target(*, target: UpstreamTarget, client_key: str | None = None) -> UpstreamTarget:
    """Store a server. ``client_key`` is a private key as PEM, empty to forget it, ``None`` to keep what there is."""
    if client_key is not None:
        target.client_key = seal_key(client_key) if client_key else b""
    target.save()
    return target


@in_transaction
def change_target_state(
    *, target_id: uuid.UUID, state: UpstreamTarget.State, actor: Any, reason: str
) -> UpstreamTarget:
    """Activate a server, drain it, or switch it off and cut what runs through it, in every worker.

    Raises :class:`ReasonMissing` and :class:`TargetStateUnchanged`.
    """
    if not reason.strip():
        raise ReasonMissing
    target = UpstreamTarget.objects.select_for_update().get(pk=target_id)
    if target.state == state:
        raise TargetStateUnchanged
    before, target.state = target.state, state
    target.save(update_fields=["state", "updated_at"])
    record(
        "upstream.state_changed",
        None,
        {
            "target_id": str(target.pk),
            "target": target.name,
            "before": before,
            "state": str(state),
            "actor_id": str(actor.pk),
            "reason": reason,
        },
    )
    return target


@in_transaction
def note_outage(*, target_names: Sequence[str]) -> UpstreamOutage | None:
    """Begin the outage of these servers unless one is open; without names end the one that is.

    Every worker that notices says so; staff are told once. Returns what began or ended, if anything.
    """
    if target_names:
        try:
            with transaction.atomic():
                outage = UpstreamOutage.objects.create(targets=list(target_names))
        except IntegrityError:
            return None
        record("upstream.outage", None, {"outage_id": str(outage.pk), "targets": outage.targets})
        return outage
    ended = UpstreamOutage.objects.select_for_update().filter(ended_at__isnull=True).first()
    if ended is None:
        return None
    ended.ended_at = clock.now()
    ended.save(update_fields=["ended_at"])
    seconds = round((ended.ended_at - ended.started_at).total_seconds())
    record("upstream.recovered", None, {"outage_id": str(ended.pk), "targets": ended.targets, "seconds": seconds})
    return ended

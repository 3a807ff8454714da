"""The access log: one JSON object for each request and WebSocket, written when it has ended.

It names who asked and how that went. What stands in path, query and headers is between the client and the server,
and a device's name is as good as half a credential: none of it is written.
"""

from __future__ import annotations

import json
import logging
from time import monotonic
from typing import Any

from proxy.answers import ANSWERS
from proxy.decisions import Decision
from proxy.exceptions import Refused
from proxy.headers import Incoming
from proxy.streams import Exchange
from proxy.timing import Course
from proxy.tracing import trace_id_of
from zenzefi.lib import clock


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


class AccessLog:
    def __init__(self) -> None:
        self._logger = logging.getLogger("proxy.access")

    def relayed(self, exchange: Exchange, course: Course, outcome: str, request_id: bytes, trace_id: bytes) -> None:
        """Write the line of an exchange that is at its end, before it lets go of its server."""
        target = exchange.target or exchange.failed_target
        self._write(
            kind="websocket" if exchange.is_websocket else "http",
            method=exchange.method,
            outcome=outcome,
            status=course.status or None,
            code=course.refusal or None,
            request_id=request_id,
            trace_id=trace_id,
            token_id=exchange.token_id,
            user_id=exchange.user_id,
            scope=exchange.scope,
            address=exchange.address,
            target=None if target is None else target.spec.name,
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            auth_ms=_milliseconds(exchange.started - course.arrived),
            upstream_ms=_milliseconds(course.first_byte - course.sent) if course.first_byte else None,
            total_ms=_milliseconds(monotonic() - course.arrived),
        )

    def answered(
        self,
        kind: str,
        method: str,
        outcome: str,
        refusal: Refused | None,
        found: Incoming | None,
        request_id: bytes,
        address: str,
        *,
        arrived: float,
        decided: float,
        decision: Decision | None = None,
        target: str | None = None,
    ) -> None:
        """Write the line of a request that was not relayed. ``decided`` is 0 where no decision was asked for.

        ``decision`` and ``target`` are those of a request that somebody else carries.
        """
        if refusal is not None:
            decision = refusal.decision
        self._write(
            kind=kind,
            method=method,
            outcome=outcome,
            status=ANSWERS[refusal.code].status if refusal is not None else 200,
            code=refusal.code if refusal is not None else None,
            request_id=request_id,
            trace_id=trace_id_of(found) if found is not None else b"",
            token_id=decision.token_id if decision is not None else b"",
            user_id=decision.user_id if decision is not None else b"",
            scope=decision.scope if decision is not None else b"",
            address=address,
            target=target,
            bytes_in=0,
            bytes_out=0,
            auth_ms=_milliseconds(decided - arrived) if decided else None,
            upstream_ms=None,
            total_ms=_milliseconds(monotonic() - arrived),
        )

    def _write(self, **fields: Any) -> None:
        moment = clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {
            name: (value.decode("latin-1") or None) if isinstance(value, bytes) else value
            for name, value in fields.items()
        }
        told["address"] = fields["address"] or None
        self._logger.info(json.dumps({"time": moment, **told}))

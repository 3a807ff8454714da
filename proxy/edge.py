"""Edge mode: a carrier in front, an nginx, takes over what needs nothing more once it is decided.

Every request comes to the gateway as it would without a carrier, and is decided on in the same place. Then most of
them need nothing of us any more: their token's clock runs, nothing slows or counts their bytes, nobody has to cut them.
Those are answered with ``X-Accel-Redirect`` to a location of the carrier that leads to the chosen server, with what is
to be sent there; the carrier tells in its log what passed (:mod:`proxy.edge_log`). Everything else, uploads, event
streams, WebSockets, first requests, limits that hold while a stream lasts, the gateway relays itself, through the
carrier. A carrier proves itself by ``EDGE_SECRET`` and names the servers it is configured for.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from time import monotonic, time

from proxy import tracing
from proxy.decisions import Decision
from proxy.headers import Incoming, drop_named_in_connection, is_device_id
from proxy.limits import NONE
from proxy.pool import Target

Header = tuple[bytes, bytes]

#: Without a body these change nothing when a carrier that failed hands them back to be sent again (RFC 9110 §9.2.2).
CARRIED = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
#: Milliseconds before a token's end from which the gateway relays, so that it can cut what is open then.
END_MARGIN_MS = 60_000
#: Bytes of a client's name of itself: of a line that were too long for the log nothing would be metered.
USER_AGENT_BYTES = 1024
#: Location of a server in the carrier's configuration; the second is for answers that may come encoded.
LOCATION, LOCATION_CODED = "zenzefi_", "zenzefi_coded_"
#: How a carrier says that it failed, and the code of it.
FAILED = {b"502": "upstream_unreachable", b"504": "upstream_timeout"}


class Edge:
    """What one worker knows of carriers."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        # By the whole header, proof included: one look for both.
        self._known: dict[bytes, frozenset[str]] = {}
        self._forwarding: dict[bytes, tuple[bytes, int]] = {}

    def servers(self, header: bytes) -> frozenset[str] | None:
        """Return the servers a carrier knows (:attr:`TargetSpec.carrier_key`); ``None`` for who is no carrier."""
        known = self._known.get(header)
        if known is None:
            secret, *names = header.split(b" ")
            if not self._secret or not hmac.compare_digest(secret, self._secret):
                return None
            known = frozenset(name.decode("latin-1") for name in names)
            if len(self._known) >= 64:
                self._known.clear()
            self._known[header] = known
        return known

    @staticmethod
    def restore(found: Incoming) -> None:
        """Take up what the client's ``Connection`` named, which the carrier's own has replaced."""
        if found.edge_connection:
            found.connection = found.edge_connection
            drop_named_in_connection(found)

    @staticmethod
    def failure(found: Incoming) -> tuple[str, str]:
        """Return how the carrier failed with this request, a code of ours, and with which server; empty if it did not.

        The request had been admitted and counted before.
        """
        status, _, server = found.edge_failed.partition(b" ")
        if status not in FAILED or not is_device_id(found.device):
            return "", ""
        return FAILED[status], server.decode("latin-1")

    def handover(
        self,
        target: Target,
        *,
        below: bytes,
        query: bytes,
        found: Incoming,
        decision: Decision,
        address: str,
        forwarding: bytes,
        request_id: bytes,
        arrived: float,
        rate: Sequence[Header],
    ) -> tuple[bytes, int]:
        """Return the header lines that tell the carrier what to send where, and how many they are."""
        coded = found.accept_coding and found.accept_coding.strip().lower() != b"identity"
        location = LOCATION_CODED if coded else LOCATION
        limits = decision.limits
        trace = tracing.lines_of(found, request_id)
        state = b"x-carry-tracestate: %b\r\n" % found.tracestate if len(trace) > tracing.ALONE else b""
        give_back = b"1" if limits.requests_per_day or limits.requests_per_month else b"0"
        told, told_count = self._forwarding.get(forwarding) or self._learn(forwarding)
        rates = b"".join([b"%b: %b\r\n" % header for header in rate])
        lines = (
            b"x-accel-redirect: @%b%b\r\nx-carry-uri: %b/%b%b\r\nx-carry-user: %b\r\nx-carry-token: %b\r\n"
            b"x-carry-log: %b %b\r\nx-request-id: %b\r\nx-carry-traceparent: %b\r\n%b"
            b"server-timing: auth;dur=%.2f\r\n%b%b"
        ) % (
            location.encode(),
            target.carrier_key.encode(),
            target.base,
            below,
            b"?" + query if query else b"",
            decision.user_id,
            decision.token_id,
            address.encode() or b"-",
            give_back,
            request_id,
            trace[tracing.PARENT],
            state,
            (monotonic() - arrived) * 1000,
            told,
            rates,
        )
        return lines, 8 + bool(state) + told_count + len(rate)

    def _learn(self, lines: bytes) -> tuple[bytes, int]:
        """Return the lines that tell the upstream who asked as headers for the carrier, and how many they are."""
        told = b"".join(b"x-carry-%b" % line.removeprefix(b"x-forwarded-") for line in lines.splitlines(keepends=True))
        if len(self._forwarding) >= 4096:
            self._forwarding.clear()
        known = self._forwarding[lines] = told, lines.count(b"\r\n")
        return known


def may_be_carried(found: Incoming, method: str, decision: Decision) -> bool:
    """Whether a request that was admitted needs nothing more of the gateway, and a carrier would send it as we do."""
    if (
        not decision.activated
        or found.has_body
        or found.cleansed
        or found.expects_continue
        or method not in CARRIED
        # CORS is ours to answer.
        or found.origin
        # Event streams last, and must be cut when their token may not be used any more.
        or b"event-stream" in found.accept
        or len(found.user_agent) > USER_AGENT_BYTES
    ):
        return False
    if decision.limits is not NONE and decision.limits.needs_gateway:
        return False
    return decision.expires - time() * 1000 > END_MARGIN_MS


def may_be_sent_again(failure: str, method: str) -> bool:
    """Whether we try what a carrier failed with. What had no answer in time has waited long enough."""
    return failure != "upstream_timeout" and method in CARRIED

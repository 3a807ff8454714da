"""What a token may do beyond its scope, in the forms that PostgreSQL, Redis and the gateway keep it.

A limit is the token's own, else that of its owner's tier, else there is none; a rate that neither names is
``RATE_LIMIT_PROXY``. Superusers have seats and networks and nothing else.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self

#: The quotas, and the unit in which the RateLimit headers count each.
QUOTAS = {
    "requests_per_day": b"requests",
    "requests_per_month": b"requests",
    "bytes_per_day": b"content-bytes",
    "bytes_per_month": b"content-bytes",
}
#: Per cent of a quota at which its owner is told.
THRESHOLDS = (80, 100)


@dataclass(frozen=True, slots=True)
class Limits:
    """Zero stands for no limit, a rate of zero for the platform's own."""

    #: In a minute.
    rate: int = 0
    seats: int = 1
    concurrency: int = 0
    requests_per_day: int = 0
    requests_per_month: int = 0
    bytes_per_day: int = 0
    bytes_per_month: int = 0
    #: Bytes a second, both directions together.
    bandwidth: int = 0
    #: Networks in CIDR notation.
    networks: tuple[str, ...] = ()

    @property
    def has_quotas(self) -> bool:
        return any(getattr(self, name) for name in QUOTAS)

    @property
    def needs_gateway(self) -> bool:
        """Whether something holds while a request lasts or counts its bytes, which only who carries it can do."""
        return bool(self.concurrency or self.bandwidth or self.bytes_per_day or self.bytes_per_month)

    def pack(self) -> str:
        """Return what ``decide.lua`` reads of it, empty when there is nothing to read."""
        values = (
            self.seats,
            self.concurrency,
            self.requests_per_day,
            self.requests_per_month,
            self.bytes_per_day,
            self.bytes_per_month,
            self.bandwidth,
        )
        return "" if values == _NOTHING else " ".join(map(str, values))

    def merged(self, own: Mapping[str, Any] | None, tier: Mapping[str, Any] | None) -> Self:
        """Return these with what a token's and a tier's row say; the former comes first."""

        def pick(name: str, unset: int) -> int:
            for row in (own, tier):
                if row is not None and row.get(name) is not None:
                    return int(row[name])
            return unset

        return type(self)(
            rate=pick("requests_per_minute", self.rate),
            seats=pick("seats", self.seats),
            concurrency=pick("concurrent_requests", self.concurrency),
            bandwidth=pick("bandwidth", self.bandwidth),
            networks=self.networks,
            **{name: pick(name, 0) for name in QUOTAS},
        )

    def for_superuser(self) -> Self:
        return type(self)(seats=self.seats, networks=self.networks)


_NOTHING = (1, 0, 0, 0, 0, 0, 0)
#: Most tokens have none.
NONE = Limits()
#: The columns that :meth:`Limits.merged` reads.
COLUMNS = ("seats", "concurrent_requests", "bandwidth", *QUOTAS)
assert {field.name for field in fields(Limits)} >= set(QUOTAS)


@functools.lru_cache(maxsize=4096)
def unpack(rate: bytes, packed: bytes) -> Limits:
    """Return what a credential in Redis says; its networks stay there."""
    values = map(int, packed.split()) if packed else _NOTHING
    seats, concurrency, day_requests, month_requests, day_bytes, month_bytes, bandwidth = values
    return Limits(int(rate or 0), seats, concurrency, day_requests, month_requests, day_bytes, month_bytes, bandwidth)


# --- networks


@functools.lru_cache(maxsize=1024)
def network_ranges(networks: tuple[str, ...]) -> str:
    """Return first and last address of each network, 32 hexadecimal digits each, IPv4 in its IPv6 form."""
    pieces = []
    for text in networks:
        network = ipaddress.ip_network(text)
        pieces += [address_key(str(network[0])), address_key(str(network[-1]))]
    return "".join(pieces)


@functools.lru_cache(maxsize=8192)
def address_key(address: str) -> str:
    """Return an address as 32 hexadecimal digits that sort as addresses do; empty for none."""
    if not address:
        return ""
    parsed = ipaddress.ip_address(address)
    number = int(parsed) if parsed.version == 6 else 0xFFFF00000000 | int(parsed)
    return f"{number:032x}"


def is_inside(address: str, networks: tuple[str, ...]) -> bool:
    """Whether an address lies in one of the networks; in none, it is inside when there is none."""
    if not networks:
        return True
    key, ranges = address_key(address), network_ranges(networks)
    if not key:
        return False
    return any(ranges[at : at + 32] <= key <= ranges[at + 32 : at + 64] for at in range(0, len(ranges), 64))


# --- periods


def day_number(moment: datetime) -> int:
    """Return the UTC day as ``lua/calendar.lua`` counts it: days since 1970."""
    return int(moment.timestamp() // 86400)


def month_number(moment: datetime) -> int:
    """Return the UTC month as ``lua/calendar.lua`` counts it: months since March of the year 0."""
    utc = moment.astimezone(UTC)
    return utc.year * 12 + utc.month - 3


def first_day(rule: str, moment: datetime) -> datetime:
    """Return the beginning of the period of a quota that a moment lies in."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight.replace(day=1) if rule.endswith("_month") else midnight


def next_period(rule: str, moment: datetime) -> datetime:
    """Return when the quota's period that a moment lies in is over."""
    first = first_day(rule, moment)
    if rule.endswith("_month"):
        return (first + timedelta(days=32)).replace(day=1)
    return first + timedelta(days=1)

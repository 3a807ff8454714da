"""The caller's address, as far as it can be believed."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from django.conf import settings
from django.http import HttpRequest

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        return None
    # ::ffff:10.0.0.1 is the IPv4 caller on a dual-stack socket.
    return getattr(address, "ipv4_mapped", None) or address


def resolve_client_address(peer: str, forwarded_for: str, trusted: Sequence[IPNetwork] | None = None) -> str:
    """Return the address of the caller: the peer, or what trusted proxies say.

    ``X-Forwarded-For`` is read from the right: as long as the hop that reported an address is itself trusted
    (``TRUSTED_PROXIES``; by default none is) the next one to the left is believed. Anything that is not an
    address ends the walk, so a caller cannot choose its own address or switch a limit off.
    """
    networks = settings.TRUSTED_PROXIES if trusted is None else trusted
    current = _parse(peer)
    if current is None:
        return ""
    for hop in reversed(forwarded_for.split(",")):
        if not any(current in network for network in networks if network.version == current.version):
            break
        reported = _parse(hop)
        if reported is None:
            break
        current = reported
    return str(current)


def client_address(request: HttpRequest) -> str:
    """Return the caller's address of a Django request; empty on a Unix socket without a trusted report."""
    return resolve_client_address(request.META.get("REMOTE_ADDR", ""), request.META.get("HTTP_X_FORWARDED_FOR", ""))


def client_network(request: HttpRequest) -> str:
    """Return what rate limits take for one caller: an IPv4 address, or the /64 that one IPv6 subscriber has."""
    return network_of(client_address(request))


def network_of(address: str) -> str:
    """Return what stands for one subscriber: an IPv4 address as it is, the /64 of an IPv6 one."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address, 64), strict=False))


def is_trusted_peer(peer: str) -> bool:
    """Whether the direct peer is a configured proxy whose forwarding headers count."""
    address = _parse(peer)
    return address is not None and any(
        address in network for network in settings.TRUSTED_PROXIES if network.version == address.version
    )


# Headers by which a proxy gives itself away.
_SIGNS_OF_A_PROXY = {
    "HTTP_FORWARDED",
    "HTTP_VIA",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_REAL_IP",
}


def is_local_caller(request: HttpRequest) -> bool:
    """Whether the caller is on this machine's loopback, as far as it can be believed.

    A loopback peer that passes on somebody else's request is not, unless it is a trusted proxy and says that the
    caller is local: a proxy that was forgotten in ``TRUSTED_PROXIES``, or that sends no ``X-Forwarded-For``, must
    not open to the world what is meant for this machine.
    """
    forwarded = request.META.get("zenzefi.forwarded") or _SIGNS_OF_A_PROXY & request.META.keys()
    if forwarded and not (
        is_trusted_peer(request.META.get("REMOTE_ADDR", "")) and "HTTP_X_FORWARDED_FOR" in request.META
    ):
        return False
    address = _parse(client_address(request))
    return address is not None and address.is_loopback

"""Whose address it is."""

from __future__ import annotations

import ipaddress

import pytest
from django.test import RequestFactory

from zenzefi.lib.network import client_network, is_trusted_peer, resolve_client_address

TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("198.51.100.7", "", "198.51.100.7"),
        # Nobody asked this peer.
        ("198.51.100.7", "203.0.113.1", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.1", "203.0.113.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        # The last hop that was not ours said so; what is left of it is the caller's own invention.
        ("10.0.0.1", "192.0.2.1, 203.0.113.1", "203.0.113.1"),
        ("10.0.0.1", "192.0.2.1, 203.0.113.1, 10.0.0.2", "203.0.113.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "not-an-ip", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.1, not-an-ip", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.1:4711", "10.0.0.1"),
        ("10.0.0.1", "not-an-ip, 203.0.113.1", "203.0.113.1"),
        ("::ffff:10.0.0.1", "203.0.113.1", "203.0.113.1"),
        ("::ffff:198.51.100.7", "", "198.51.100.7"),
        ("2001:db8::1", "[2a00::1]", "2a00::1"),
        ("2001:db8::1", "2A00:0:0::1", "2a00::1"),
        ("", "203.0.113.1", ""),
        ("unix:", "", ""),
    ],
)
def test_the_walk_ends_at_the_first_hop_that_is_not_ours(peer, forwarded, expected):
    assert resolve_client_address(peer, forwarded, TRUSTED) == expected


def test_by_default_nobody_is_trusted(settings):
    assert settings.TRUSTED_PROXIES == []
    assert resolve_client_address("127.0.0.1", "203.0.113.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "trusted"), [("10.9.9.9", True), ("::ffff:10.9.9.9", True), ("11.0.0.1", False), ("", False), ("x", False)]
)
def test_trusted_peers(settings, peer, trusted):
    settings.TRUSTED_PROXIES = TRUSTED

    assert is_trusted_peer(peer) is trusted


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2a00:1:2:3:4:5:6:7", "2a00:1:2:3::/64"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("", ""),
    ],
)
def test_what_limits_take_for_one_caller(address, network):
    assert client_network(RequestFactory().get("/", REMOTE_ADDR=address)) == network

"""A token bound to networks is refused from everywhere else, before it claims or counts anything."""

from __future__ import annotations

import ipaddress
import time

import pytest

from proxy.decisions import ADMIT, DEVICE_OK, RECHECK, Outcome
from proxy.limits import address_key, is_inside, network_ranges
from tests.api import Api
from tests.proxy.live import LiveGateway
from tests.proxy.test_refusals import assert_refused, assert_untouched
from tests.proxy.test_revocation import CUT_WITHIN, cut_after
from tokens.exceptions import InvalidNetwork, TooManyNetworks
from tokens.services import as_networks, update_token

VECTORS = [
    # networks, address, inside
    (["203.0.113.7"], "203.0.113.7", True),
    (["203.0.113.7"], "203.0.113.8", False),
    (["203.0.113.0/24"], "203.0.113.0", True),
    (["203.0.113.0/24"], "203.0.113.255", True),
    (["203.0.113.0/24"], "203.0.114.0", False),
    (["203.0.113.0/24"], "203.0.112.255", False),
    (["203.0.113.128/25"], "203.0.113.127", False),
    (["203.0.113.128/25"], "203.0.113.128", True),
    (["10.1.2.3/8"], "10.255.255.255", True),
    (["10.0.0.0/31"], "10.0.0.1", True),
    (["10.0.0.0/31"], "10.0.0.2", False),
    (["0.0.0.0/0"], "198.51.100.1", True),
    (["0.0.0.0/0"], "2001:db8::1", False),
    (["0.0.0.0/0"], "", False),
    (["::/0"], "2001:db8::1", True),
    # An IPv4 client is ::ffff:a.b.c.d, on whatever socket it came.
    (["::/0"], "198.51.100.1", True),
    (["::ffff:198.51.100.0/120"], "198.51.100.1", True),
    (["::ffff:198.51.100.0/120"], "198.51.101.1", False),
    (["2001:db8::/32"], "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", True),
    (["2001:db8::/32"], "2001:db9::", False),
    (["2001:db8::/32"], "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", False),
    (["2001:db8::/32"], "32.1.13.184", False),
    (["2001:db8::1"], "2001:DB8:0:0:0:0:0:1", True),
    (["2001:db8::1"], "2001:db8::2", False),
    (["fe80::/10"], "febf::1", True),
    (["fe80::/10"], "fec0::1", False),
    (["::1"], "::1", True),
    (["::1"], "127.0.0.1", False),
    (["127.0.0.0/8", "10.0.0.0/8"], "10.9.8.7", True),
    (["127.0.0.0/8", "10.0.0.0/8"], "11.0.0.0", False),
    ([f"198.51.100.{number}" for number in range(50)], "198.51.100.49", True),
    ([f"198.51.100.{number}" for number in range(50)], "198.51.100.50", False),
    ([], "198.51.100.1", True),
    ([], "", True),
]


@pytest.mark.parametrize(("networks", "address", "inside"), VECTORS)
def test_vectors_without_redis(networks, address, inside):
    assert is_inside(address, tuple(as_networks(networks))) is inside


def test_vectors_in_the_script(live, issue, allow):
    """Every vector through the one call that decides, admitting and looking again."""
    for networks, address, inside in VECTORS:
        issued = issue()
        allow(issued, networks)
        for mode in (RECHECK, ADMIT):
            decision = live.run(
                live.gateway.validator.decide(issued.token.digest, b"device-one", DEVICE_OK, b"", address, mode=mode)
            )
            expected = Outcome.OK if inside else Outcome.ADDRESS_FORBIDDEN
            assert decision.outcome == expected, (networks, address, mode)


def test_keys_sort_as_addresses_do():
    texts = ["0.0.0.0", "9.9.9.9", "10.0.0.0", "255.255.255.255", "::1", "::fffe:ffff:ffff", "2001:db8::", "ffff::"]
    addresses = [ipaddress.ip_address(text) for text in texts]
    as_v6 = [
        int(address) if address.version == 6 else int(ipaddress.ip_address(f"::ffff:{address}"))
        for address in addresses
    ]
    pairs = sorted(zip(as_v6, texts, strict=True))
    assert sorted(map(address_key, texts)) == [address_key(text) for _number, text in pairs]
    assert len(network_ranges(("10.0.0.0/8", "::/0"))) == 128


def test_elsewhere_nothing_is_claimed_or_counted(live, upstream, issue, allow):
    issued = issue(scope="certificates_only")
    allow(issued, ["203.0.113.0/24", "2001:db8::/32"], requests_per_day=5)
    with live.client(issued.secret) as client:
        refused = client.get("certificates/filter")
        # The address comes before the path, and after the device's header.
        assert_refused(client.get("json"), 403, "address_forbidden")
        assert_refused(client.get("json", headers={"X-Device-ID": "short"}), 400, "device_malformed")
        # What the token is may be asked from anywhere.
        assert client.get("status").status_code == 200

    assert_refused(refused, 403, "address_forbidden")
    assert refused.json()["rule"] == "allowed_ips"
    assert_untouched(upstream, issued)


def test_trusted_proxies_are_believed_and_nobody_else(settings, upstream, transactional_db, issue, allow):
    issued = issue()
    allow(issued, ["203.0.113.0/24"])
    claimed = {"X-Forwarded-For": "203.0.113.9"}
    with LiveGateway().running() as live, live.client(issued.secret) as client:
        assert_refused(client.get("json", headers=claimed), 403, "address_forbidden")
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    with LiveGateway().running() as live, live.client(issued.secret) as client:
        assert client.get("json", headers=claimed).status_code == 200
        assert_refused(client.get("json", headers={"X-Forwarded-For": "203.0.114.9"}), 403, "address_forbidden")
        assert_refused(client.get("json", headers={"X-Forwarded-For": "junk"}), 403, "address_forbidden")
        assert_refused(client.get("json"), 403, "address_forbidden")


def test_the_owner_binds_a_token_and_its_streams_from_elsewhere_end(live, issue):
    issued = issue()
    owner = Api()
    owner.sign_in(issued.token.owner, "secret-enough")
    path = f"tokens/{issued.token.pk}"

    with live.client(issued.secret) as client:
        with client.stream("GET", "events?n=0&interval=0.1") as stream:
            changed = []
            bind = {"allowed_ips": ["10.1.2.3/8", "2001:DB8::/32", "10.0.0.0/8"]}
            assert cut_after(stream, lambda: changed.append(owner.patch(path, bind))) < CUT_WITHIN
        assert changed[0]["allowed_ips"] == ["10.0.0.0/8", "2001:db8::/32"]
        assert_refused(client.get("json"), 403, "address_forbidden")
        owner.patch(path, {"label": "bound"})
        assert owner.get(path)["allowed_ips"] == ["10.0.0.0/8", "2001:db8::/32"]
        owner.patch(path, {"allowed_ips": []})
        assert client.get("json").status_code == 200


def test_a_stream_from_inside_goes_on(live, issue, allow):
    issued = issue()
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.1") as stream:
        pieces = stream.iter_raw()
        next(pieces)
        allow(issued, ["127.0.0.1"])
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            next(pieces)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (["nonsense"], "invalid_network"),
        (["10.0.0.0/33"], "invalid_network"),
        (["fe80::1%eth0"], "invalid_network"),
        ([""], "validation_error"),
        (["10.0.0.0/8\0"], "parse_error"),
        (["1.2.3.4 5.6.7.8"], "invalid_network"),
        ([f"10.0.0.{number}" for number in range(51)], "validation_error"),
        (["x" * 65], "validation_error"),
        ([17], "validation_error"),
        ("10.0.0.0/8", "validation_error"),
        (None, "validation_error"),
    ],
)
def test_what_is_no_list_of_networks_changes_nothing(issue, value, code):
    issued = issue(allowed_ips=["10.0.0.0/8"])
    owner = Api()
    owner.sign_in(issued.token.owner, "secret-enough")
    owner.patch(f"tokens/{issued.token.pk}", {"label": "new", "allowed_ips": value}, status=400, code=code)
    issued.reload()
    assert (issued.token.label, issued.token.allowed_ips) == ("", ["10.0.0.0/8"])


def test_the_service_refuses_too_many(issue):
    issued = issue()
    with pytest.raises(TooManyNetworks):
        update_token(token_id=issued.token.pk, owner=None, allowed_ips=[f"10.0.0.{number}" for number in range(51)])
    with pytest.raises(InvalidNetwork):
        as_networks(["10.0.0.0/8", "::g"])
    assert issued.reload().allowed_ips == []

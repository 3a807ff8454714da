"""The same request straight to the upstream and through nginx in edge mode: what docs/edge.md lists differs beyond what
differs through the gateway alone, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.database import Reset
from tests.proxy.carrier import Carrier, carrier, edge_log, edge_mode
from tests.proxy.conftest import Served, serve_module
from tests.proxy.mirror import Got, Mirror, Seen, Wire
from tests.proxy.test_differential import (
    CASES,
    OURS_DOWN,
    OURS_UPSTREAM,
    Case,
    ask_directly,
    compare_traces,
    exchange,
    kept,
    named_in_connection,
)

pytestmark = [pytest.mark.django_db, pytest.mark.nginx]


#: As nginx has it, with its usual settings.
PLAIN_NAME = re.compile(rb"[a-z0-9-]+")
#: nginx itself refuses these targets: what they decode to is not a path to it.
REFUSED_BY_NGINX = {b"/%2f%5c%00", b"/%zz%"}


@dataclass
class Edge:
    served: Served
    nginx: Carrier
    handed: list[str]


@pytest.fixture(scope="module")
def edge(
    mirror: Mirror, django_db_setup: Reset, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Edge]:
    from django.conf import settings

    from tests.proxy.test_edge import watch

    options = {**settings.GATEWAY, "eject_after": 10**9, "probe_interval": 3600.0}
    with (
        serve_module(django_db_blocker, django_db_setup, mirror, GATEWAY=options, **edge_mode()) as served,
        edge_log(served.live),
        carrier(tmp_path_factory.mktemp("edge"), served.live) as nginx,
    ):
        handed = watch(served.live)
        with Wire(nginx.port) as wire:
            # The token's clock starts.
            wire.send(served.request(b"first"))
            assert wire.read().status == 200
        yield Edge(served, nginx, handed)


# nginx before 1.29 takes an interim answer for the final one; servers that send some are not for edge mode.
NUMBERS = [number for number, case in enumerate(CASES) if not case.answer.startswith(b"HTTP/1.1 1")]


@pytest.mark.parametrize("number", NUMBERS, ids=[CASES[number].name for number in NUMBERS])
def test_only_what_is_documented_differs(edge: Edge, mirror: Mirror, number: int) -> None:
    case = CASES[number]
    key = b"case%d" % number
    direct = ask_directly(mirror, case, key)
    edge.handed.clear()
    with Wire(edge.nginx.port) as wire:
        request = edge.served.request(key + case.target, case.headers, case.body, method=case.method)
        relayed = exchange(wire, case, request)
    if case.target in REFUSED_BY_NGINX:
        assert relayed.status == 400
        assert len(mirror.seen) == 1
        return
    first, second, *_ = mirror.seen
    compare_requests(first, second)
    compare_answers(case, direct, relayed, carried=bool(edge.handed))


def compare_requests(direct: Seen, relayed: Seen) -> None:
    assert relayed.method == direct.method
    assert relayed.target == direct.target
    assert relayed.body == direct.body
    ours = OURS_UPSTREAM | {b"content-length"}
    connections = direct.values(b"connection")
    if len(connections) > 1:
        # Of several fields nginx 1.22 sees the first.
        ours |= {name.strip().lower() for value in connections for name in value.split(b",")}
    # Without these nginx would let pass what one server reads as another name.
    sent = [(name, value) for name, value in kept(direct.headers, ours) if PLAIN_NAME.fullmatch(name)]
    assert kept(relayed.headers, ours) == sent
    for name in (b"host", b"via", b"forwarded", b"x-forwarded-for", b"x-request-id", b"x-user-id", b"x-token-id"):
        assert len(relayed.values(name)) == 1
    compare_traces(direct, relayed)


def compare_answers(case: Case, direct: Got, relayed: Got, *, carried: bool) -> None:
    assert relayed.status == direct.status
    assert relayed.code == ""
    assert relayed.body == direct.body
    # nginx says when and who where the server does not, and rewrites one more field with an address in it.
    ours = OURS_DOWN | {b"content-length", b"refresh", b"server-timing"}
    ours |= {name for name in (b"date", b"server") if not direct.values(name)}
    if carried:
        # It does not know of these, only of Connection itself.
        ours |= named_in_connection(direct.headers)
    assert sorted(kept(relayed.headers, ours)) == sorted(kept(direct.headers, ours))
    # Ours is a field of its own behind the server's.
    *timings, our_timing = relayed.values(b"server-timing")
    assert timings == direct.values(b"server-timing")
    assert our_timing.startswith(b"auth;dur=")
    assert relayed.values(b"via")[-1].endswith(b"1.1 zenzefi-proxy")
    assert len(relayed.values(b"x-request-id")) == 1
    lengths = direct.values(b"content-length")
    encoded = [v for v in direct.values(b"content-encoding") if v.lower() != b"identity"]
    if direct.status == 204 or (direct.status == 304 and not carried):
        lengths = []
    elif case.method != b"HEAD" and b"Accept-Encoding" in case.headers:
        # Whether the answer is encoded is not known when nginx is told what to do.
        lengths = []
    if encoded and case.method != b"HEAD" and not relayed.values(b"transfer-encoding"):
        # Nobody sends an encoding unasked.
        assert b"Accept-Encoding" not in case.headers
    assert relayed.values(b"content-length") == lengths
    # An answer whose head is too large for nginx comes through the gateway in the end.
    if carried and sum(len(value) for _, value in direct.headers) < 16_000:
        assert relayed.reason == direct.reason

"""Edge mode: nginx, configured as shipped, carries what the gateway hands over, and nothing else changes."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from proxy.edge_log import EdgeLog
from tests.proxy.carrier import SECRET, Carrier, carrier, edge_log
from tests.proxy.live import LiveGateway
from tests.upstream import RecordingUpstream, unused_port

pytestmark = pytest.mark.nginx

DAY = timedelta(hours=12)


@pytest.fixture(autouse=True)
def edge_settings(settings) -> None:
    settings.EDGE_SECRET = SECRET
    settings.EDGE_LOG = f"127.0.0.1:{unused_port()}"
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]


@pytest.fixture
def log(live: LiveGateway) -> Iterator[EdgeLog]:
    with edge_log(live) as receiving:
        yield receiving


@pytest.fixture
def edge(live: LiveGateway, log: EdgeLog, tmp_path: Path) -> Iterator[Carrier]:
    with carrier(tmp_path, live) as nginx:
        yield nginx
        assert "[emerg]" not in nginx.errors
        assert "could not build optimal" not in nginx.errors


def handed_over(live: LiveGateway) -> int:
    return live.gateway.metrics._outcomes.get("handed_over", 0)


def test_smoke(edge, live, upstream: RecordingUpstream, issue):
    issued = issue(active_for=DAY)
    with edge.client(issued.secret) as client:
        answer = client.get("certificates/filter", params={"a": "1"})
    print(answer.status_code, answer.headers, answer.text)
    print(json.dumps([(n.decode(), v.decode()) for n, v in upstream.requests[0].headers], indent=1))
    print(upstream.targets, edge.errors)
    print(live.gateway.metrics._outcomes)
    assert answer.status_code == 200

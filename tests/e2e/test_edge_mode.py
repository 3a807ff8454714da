"""Edge mode as an operator sets it up: the platform with a secret, nginx as shipped in front of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.stack import Stack, running, wait_until
from tests.proxy.carrier import Carrier, edge_mode

pytestmark = [pytest.mark.nginx, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Carrier]]:
    agreed = edge_mode()
    variables = {"EDGE_SECRET": agreed["EDGE_SECRET"], "EDGE_LOG": agreed["EDGE_LOG"], "TRUSTED_PROXIES": "127.0.0.1"}
    directory: Path = tmp_path_factory.mktemp("edge")
    with running(directory / "var", **variables) as stack:
        # The demo server's address is known to what the platform has started alone.
        [upstream] = stack.running("zenzefi.runtime.demo_upstream")
        port = upstream.cmdline()[-1]
        stack.environment["ZENZEFI_TARGET_URL"] = f"http://127.0.0.1:{port}"
        nginx = Carrier(
            directory / "nginx",
            gateway_port=stack.port,
            edge_config=lambda folder: stack.manage("edge_config", folder),
        )
        nginx.write()
        nginx.start()
        try:
            yield stack, nginx
        finally:
            nginx.stop()
        meters = _meters(stack)
    assert meters and not any(meter.is_running() for meter in meters)


def _meters(stack: Stack) -> list[psutil.Process]:
    return stack.running("edge_meter")


def _usage(client: httpx.Client) -> dict[str, int]:
    return client.get("status").json()["usage"]


def _handed_over(stack: Stack) -> float:
    text = httpx.get(f"{stack.url}/metrics", timeout=30, trust_env=False).text
    found = re.search(r'^zenzefi_proxy_requests_total\{kind="http",outcome="handed_over"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_customer_is_served_and_metered(edge):
    stack, nginx = edge
    customer = stack.customer()
    bought = customer.buy()
    before = _handed_over(stack)
    with nginx.client(bought["token"]) as client:
        assert client.get("status").json()["status"] == "ready"
        expected = 0
        for size in (100, 1_000_000, 0, 7, 50_000):
            body = client.get(f"bytes/{size}").content
            assert len(body) == size
            expected += size
        assert client.get("status").json()["status"] == "active"
        wait_until(lambda: _usage(client)["requests"] == 5, seconds=60, what="five requests in the usage")
        assert _usage(client)["bytes_out"] == expected
        # All but the first, which started the clock. Those of another test may be told late.
        wait_until(lambda: _handed_over(stack) >= before + 4, seconds=60, what="four requests handed over")
        customer.http.delete(f"/api/v1/tokens/{bought['id']}")
        refused = client.get("bytes/1")
        assert (refused.status_code, refused.headers["x-zenzefi-error"]) == (401, "token_revoked")


def test_the_receiver_of_the_log_is_started_again(edge):
    stack, nginx = edge
    token = stack.customer().buy()["token"]
    with nginx.client(token) as client:
        assert client.get("bytes/1").status_code == 200
        [meter] = _meters(stack)
        meter.kill()
        # Nobody who asks notices, only what ends now is not metered.
        assert client.get("bytes/1").status_code == 200
        wait_until(lambda: bool(set(_meters(stack)) - {meter}), seconds=60, what="another receiver")
        before = _usage(client)["requests"]

        def metered() -> bool:
            assert client.get("bytes/1").status_code == 200
            return _usage(client)["requests"] > before + 1

        wait_until(metered, seconds=60, what="metering again")

"""What operators see: figures whose labels come from fixed sets, of all workers together."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid

import httpx
import pytest
from django.db import connection
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from proxy.answers import ANSWERS
from proxy.models import UpstreamTarget
from tests.proxy.live import DEVICE, read_response, request_bytes
from tests.proxy.test_websocket import open_socket
from tests.upstream import RawUpstream, unused_port, wait_until
from tokens import secrets


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_requests_bytes_and_durations_are_counted(live, issue):
    names = {
        "relayed": ("zenzefi_proxy_requests_total", {"outcome": "2xx", "kind": "http"}),
        "refused": ("zenzefi_proxy_requests_total", {"outcome": "device_missing", "kind": "http"}),
        "out": ("zenzefi_proxy_bytes_total", {"direction": "out"}),
        "in": ("zenzefi_proxy_bytes_total", {"direction": "in"}),
        "durations": ("zenzefi_proxy_duration_seconds_count", {}),
        "first bytes": ("zenzefi_proxy_first_byte_seconds_count", {}),
        "from redis": ("zenzefi_proxy_validations_total", {"layer": "redis"}),
        "from postgresql": ("zenzefi_proxy_validations_total", {"layer": "postgresql"}),
    }

    def read():
        return {key: value(name, **labels) for key, (name, labels) in names.items()}

    before = read()
    with live.client(issue().secret) as client:
        for _ in range(3):
            client.get("bytes/1000")
        client.post("sink?digest=0", content=b"x" * 500)
        client.get("json", headers={"X-Device-ID": ""})

    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchanges")
    # All at once, rather than in the middle of being handed over.
    live.run(flush_figures(live))
    after = read()
    change = {key: after[key] - before[key] for key in names}
    assert (change["relayed"], change["refused"]) == (4, 1)
    assert change["out"] > 3000
    assert (change["in"], change["durations"], change["first bytes"]) == (500, 4, 4)
    assert (change["from postgresql"], change["from redis"]) == (1, 4)
    assert value("zenzefi_proxy_duration_seconds_bucket", le="+Inf") == value("zenzefi_proxy_duration_seconds_count")
    assert value("zenzefi_proxy_redis_up") == 1


KINDS = {"http", "websocket"}
OUTCOMES = {
    *ANSWERS,
    "1xx",
    "2xx",
    "3xx",
    "4xx",
    "5xx",
    "status",
    "preflight",
    "options",
    "handed_over",
    "let_through",
    "client_gone",
    "idle",
    "broken_off",
    "error",
    # Of a carrier's lines.
    "counted",
    "unanswered",
    "malformed",
}
#: Every label of the gateway's figures and all that it can say.
LABELS = {
    "outcome": OUTCOMES,
    "kind": KINDS | {"event_stream"},
    "code": set(ANSWERS),
    "direction": {"in", "out"},
    "layer": {"redis", "negative", "postgresql", "fallback"},
    # Of those that the tests of this process have used; servers are rows that staff name.
    "target": None,
}


def scraped(live) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the gateway's samples by name as ``/metrics`` tells them."""
    live.run(flush_figures(live))
    answer = httpx.get(f"{live.url}/metrics", timeout=30, trust_env=False)
    assert answer.status_code == 200
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name.startswith("zenzefi_proxy_"):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_labels_come_from_fixed_sets_whatever_is_asked(live, upstream, issue):
    issued = issue()
    odd = "odd-" + uuid.uuid4().hex
    methods = ["GET", "PROPFIND", "TRACE", "PURGE", "OPTIONS"]
    with live.client(issued.secret) as client:
        for number in range(40):
            client.request(
                methods[number % len(methods)],
                f"{odd}/{uuid.uuid4().hex}?{odd}={number}",
                headers={
                    "X-Request-ID": odd,
                    "User-Agent": odd,
                    "X-Zenzefi-Error": odd,
                    "Origin": f"https://{odd}.example",
                    "X-Device-ID": DEVICE if number % 3 else odd[:number],
                    "traceparent": f"00-{uuid.uuid4().hex}-b7ad6b7169203331-01",
                },
            )
        for status in range(200, 600, 7):
            client.get(f"status/{status}")
        client.get("status", headers={"X-Access-Token": odd})
    for path in (odd, "ws", "json"):
        for device in (DEVICE, odd[:6]):
            with contextlib.suppress(InvalidStatus), open_socket(live, issued.secret, path=path, device=device):
                pass
    with live.raw() as peer:
        peer.sendall(request_bytes(odd, issued.secret, extra=f"Host: {odd}\r\n".encode()))
        assert read_response(peer)[0] == 400
        peer.sendall(b"NO" + odd.encode() + b" / HTTP/9.9\r\n\r\n")
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchanges")

    samples = scraped(live)
    names = {target.spec.name for target in live.gateway.upstream.targets}
    for name, series in samples.items():
        for labels, _ in series:
            for label, said in labels.items():
                if label == "le":
                    float(said)
                    continue
                allowed = LABELS[label]
                assert allowed is None or said in allowed, (name, labels)
                assert odd not in said
    assert {labels["target"] for labels, _ in samples["zenzefi_proxy_upstream_in_flight"]} >= names
    assert set(samples) >= {
        "zenzefi_proxy_requests_total",
        "zenzefi_proxy_refusals_total",
        "zenzefi_proxy_bytes_total",
        "zenzefi_proxy_validations_total",
        "zenzefi_proxy_overhead_seconds_bucket",
        "zenzefi_proxy_first_byte_seconds_bucket",
        "zenzefi_proxy_duration_seconds_bucket",
        "zenzefi_proxy_open_streams",
        "zenzefi_proxy_open_exchanges",
        "zenzefi_proxy_upstream_state",
    }


class Moved:
    """How much samples have grown since this was made."""

    def __init__(self, live) -> None:
        self._live = live
        self._before = self._read()

    def _read(self) -> dict[tuple[str, frozenset], float]:
        return {
            (name, frozenset(labels.items())): number
            for name, series in scraped(self._live).items()
            for labels, number in series
        }

    def __call__(self, name: str, **labels: str) -> float:
        key = (f"zenzefi_proxy_{name}", frozenset(labels.items()))
        return self._read().get(key, 0.0) - self._before.get(key, 0.0)


def test_refusals_are_counted_by_code_and_requests_by_kind(live, issue):
    issued, moved = issue(), Moved(live)
    with live.client(issued.secret) as client:
        client.get("json")
        for _ in range(3):
            client.get("json", headers={"X-Device-ID": "short"})
        client.get("status", headers={"X-Access-Token": ""})
        # The server's own answer, whatever it says.
        client.get("status/403")
    with open_socket(live, issued.secret):
        pass
    for _ in range(2):
        with pytest.raises(InvalidStatus):
            open_socket(live, issued.secret, path="json")
    with pytest.raises(InvalidStatus):
        open_socket(live, issued.secret, device="short")
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchanges")
    # A refusal is counted when the client may have it already.
    wait_until(
        lambda: moved("requests_total", outcome="device_malformed", kind="websocket") == 1, what="the last refusal"
    )

    assert moved("refusals_total", code="device_malformed") == 4
    assert moved("refusals_total", code="token_missing") == 1
    assert moved("refusals_total", code="upstream_refused") == 2
    assert moved("requests_total", outcome="2xx", kind="http") == 1
    assert moved("requests_total", outcome="4xx", kind="http") == 1
    assert moved("requests_total", outcome="device_malformed", kind="http") == 3
    assert moved("requests_total", outcome="upstream_refused", kind="websocket") == 2
    assert moved("requests_total", outcome="1xx", kind="websocket") == 1


def test_overhead_is_what_the_server_is_not_to_blame_for(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        client.get("json")
        wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
        moved = Moved(live)
        client.get("slow?seconds=2")
        client.get("json", headers={"X-Device-ID": "short"})

    wait_until(lambda: moved("duration_seconds_count") == 1, what="the figures")
    # A refusal has no overhead over anything.
    assert moved("overhead_seconds_count") == 1
    assert 0 < moved("overhead_seconds_sum") < 1.9
    assert moved("overhead_seconds_bucket", le="+Inf") == 1
    assert moved("first_byte_seconds_sum") >= 2
    finest = min(float(labels["le"]) for labels, _ in scraped(live)["zenzefi_proxy_overhead_seconds_bucket"])
    assert finest == 0.00025


def test_open_streams_are_told_by_kind(live, upstream, issue):
    issued = issue()

    def is_open():
        return {labels["kind"]: number for labels, number in scraped(live)["zenzefi_proxy_open_streams"]}

    assert is_open() == {"http": 0, "event_stream": 0, "websocket": 0}
    with (
        live.client(issued.secret) as client,
        open_socket(live, issued.secret),
        open_socket(live, issued.secret),
        client.stream("GET", "events?n=0&interval=0.05"),
        live.raw() as peer,
    ):
        peer.sendall(request_bytes("hang", issued.secret))
        wait_until(lambda: is_open() == {"http": 1, "event_stream": 1, "websocket": 2}, what="all kinds")
    wait_until(lambda: is_open() == {"http": 0, "event_stream": 0, "websocket": 0}, what="the end of all")


def test_failures_are_counted_by_server(live, settings, issue):
    UpstreamTarget.objects.create(name="broken", url=f"http://127.0.0.1:{unused_port()}", probe_path="")
    live.stop()
    live.start()
    moved = Moved(live)
    with live.client(issue().secret) as client:
        for _ in range(2):
            assert client.get("json").status_code == 502
    with RawUpstream(b"nonsense\r\n\r\n") as server:
        UpstreamTarget.objects.update(url=server.url)
        live.stop()
        live.start()
        with live.client(issue().secret) as client:
            assert client.get("json").headers["x-zenzefi-error"] == "upstream_invalid"

    assert moved("upstream_failures_total", target="broken") == 3


def test_unknown_tokens_that_are_remembered_count_apart(live, issue):
    moved, unknown = Moved(live), secrets.generate()
    with live.client(unknown) as client:
        for _ in range(4):
            assert client.get("json").status_code == 401
    with live.client(issue(revoked_at="2026-01-01T00:00:00Z").secret) as client:
        for _ in range(2):
            assert client.get("json").status_code == 401

    assert moved("validations_total", layer="negative") == 3
    assert moved("validations_total", layer="postgresql") == 2
    assert moved("validations_total", layer="redis") == 1


_WORKER = """
import sys
import django
from django.conf import settings

name, prefix, token = sys.argv[1:]
settings.DATABASES["default"]["NAME"] = name
settings.REDIS_PREFIX = prefix
django.setup()

from tests.proxy.live import LiveGateway

with LiveGateway().running() as live, live.client(token) as client:
    assert [client.get("json").status_code for _ in range(2)] == [200, 200]
    assert client.get("json", headers={"X-Device-ID": "short"}).status_code == 400
"""


@pytest.mark.timeout(300)
def test_several_workers_count_together(client, live, issue, settings, monkeypatch, tmp_path):
    """Each is a process of its own that writes to the shared directory, as gunicorn's are."""
    issued = issue()
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "ZENZEFI_TARGET_URL": settings.ZENZEFI_TARGET_URLS[0],
    }
    arguments = [str(connection.settings_dict["NAME"]), settings.REDIS_PREFIX, issued.secret]
    for _ in range(2):
        subprocess.run([sys.executable, "-c", _WORKER, *arguments], env=environment, check=True, timeout=120)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    lines = client.get("/metrics").text.splitlines()

    assert 'zenzefi_proxy_requests_total{kind="http",outcome="2xx"} 4.0' in lines
    assert 'zenzefi_proxy_refusals_total{code="device_malformed"} 2.0' in lines
    assert 'zenzefi_proxy_validations_total{layer="redis"}' in "\n".join(lines)
    assert "zenzefi_proxy_overhead_seconds_count 4.0" in lines
    assert 'zenzefi_proxy_overhead_seconds_bucket{le="+Inf"} 4.0' in lines
    assert 'zenzefi_proxy_open_streams{kind="event_stream"} 0.0' in lines


async def flush_figures(live):
    live.gateway.metrics.flush()

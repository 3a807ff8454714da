"""Who may read the metrics, and that they are those of all processes."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys

import pytest
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.upstream import wait_until

STRANGER = "203.0.113.9"
TOKEN = "a-token-for-the-tests"


@pytest.fixture(autouse=True)
def _token(settings):
    settings.METRICS_TOKEN = TOKEN


def test_this_machine_may_read_them(client: Client):
    answer = client.get("/metrics")

    assert answer.status_code == 200
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"zenzefi_check_up", "django_http_requests_before_middlewares"} <= names


def test_openmetrics_ends_once(client: Client):
    answer = client.get("/metrics", HTTP_ACCEPT="application/openmetrics-text;version=1.0.0")

    assert answer["Content-Type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert answer.text.count("# EOF") == 1


def test_to_strangers_the_page_does_not_exist(client: Client):
    answer = client.get("/metrics", REMOTE_ADDR=STRANGER)
    nothing = client.get("/no-such-page", REMOTE_ADDR=STRANGER)

    assert answer.status_code == nothing.status_code == 404
    assert {**answer.json(), "request_id": ""} == {**nothing.json(), "request_id": ""}


@pytest.mark.parametrize(
    ("credential", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 404),
        (f"Bearer {TOKEN[:-1]}", 404),
        (f"Basic {TOKEN}", 404),
        (TOKEN, 404),
        ("Bearer ", 404),
        ("Bearer п", 404),
    ],
)
def test_the_token_opens_them(client: Client, credential, status):
    assert client.get("/metrics", REMOTE_ADDR=STRANGER, HTTP_AUTHORIZATION=credential).status_code == status


def test_no_token_is_no_password(client: Client, settings):
    settings.METRICS_TOKEN = ""

    assert client.get("/metrics", REMOTE_ADDR=STRANGER, HTTP_AUTHORIZATION="Bearer ").status_code == 404


@pytest.mark.parametrize(
    ("trusted", "headers", "status"),
    [
        ([], {"HTTP_X_FORWARDED_FOR": STRANGER}, 404),
        ([], {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 404),
        ([], {"HTTP_FORWARDED": f"for={STRANGER}"}, 404),
        ([], {"HTTP_VIA": "1.1 proxy"}, 404),
        ([], {"HTTP_X_REAL_IP": STRANGER}, 404),
        (["127.0.0.0/8"], {"HTTP_X_FORWARDED_FOR": STRANGER}, 404),
        (["127.0.0.0/8"], {"HTTP_X_FORWARDED_FOR": f"127.0.0.1, {STRANGER}"}, 404),
        (["127.0.0.0/8"], {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 200),
        (["127.0.0.0/8"], {"HTTP_X_FORWARDED_PROTO": "https"}, 404),
        (["127.0.0.0/8"], {}, 200),
    ],
)
def test_behind_a_proxy_the_caller_counts_not_the_proxy(client: Client, settings, trusted, headers, status):
    settings.TRUSTED_PROXIES = [ipaddress.ip_network(network) for network in trusted]

    assert client.get("/metrics", **headers).status_code == status


def test_they_are_read_only(client: Client):
    answer = client.post("/metrics")

    assert answer.status_code == 405
    assert answer["Allow"] == "GET, HEAD"


def test_all_processes_count(client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path):
    program = "from prometheus_client import Counter; Counter('purchases', 'Things bought').inc(3)"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    assert "purchases_total 6.0" in client.get("/metrics").text
    wait_until(lambda: 'zenzefi_check_up{check="redis"} 1.0' in client.get("/metrics").text, what="Redis is up")

"""What operators see: figures with bounded labels, and a log without secrets."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import REGISTRY

from tests.proxy.live import DEVICE
from tests.upstream import wait_until


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_requests_bytes_and_durations_are_counted(live, issue):
    names = {
        "relayed": ("zenzefi_proxy_requests_total", {"outcome": "2xx"}),
        "refused": ("zenzefi_proxy_requests_total", {"outcome": "device_missing"}),
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

    def moved():
        after = read()
        return {key: after[key] - before[key] for key in names}

    wait_until(lambda: moved()["refused"] == 1 and moved()["relayed"] == 4, what="the figures")
    change = moved()
    assert change["out"] > 3000
    assert (change["in"], change["durations"], change["first bytes"]) == (500, 4, 4)
    assert (change["from postgresql"], change["from redis"]) == (1, 4)
    assert value("zenzefi_proxy_duration_seconds_bucket", le="+Inf") == value("zenzefi_proxy_duration_seconds_count")
    assert value("zenzefi_proxy_redis_up") == 1


def test_no_label_carries_what_a_caller_chooses(live, issue):
    with live.client(issue().secret) as client:
        client.get("some/very/particular/path")
    live.run(_flush(live))

    labels = {
        str(label)
        for family in REGISTRY.collect()
        if family.name.startswith("zenzefi_proxy")
        for sample in family.samples
        for label in sample.labels.values()
    }
    assert not any("particular" in label for label in labels)


async def _flush(live):
    live.gateway.metrics.flush()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_access_log_names_no_secret(live, settings, issue, caplog, enabled):
    settings.GATEWAY = {**settings.GATEWAY, "access_log": enabled}
    live.stop()
    live.start()
    issued = issue()
    with caplog.at_level(logging.INFO), live.client(issued.secret) as client:
        client.get("json?password=query-secret")
        client.get("json", headers={"X-Device-ID": ""})

        def lines():
            return [record.getMessage() for record in caplog.records if record.name == "proxy.access"]

        # A line is written when the client may have its answer already.
        if enabled:
            wait_until(lambda: len(lines()) == 2, what="both lines")
        written = lines()

    assert len(written) == (2 if enabled else 0)
    everything = " ".join(record.getMessage() for record in caplog.records)
    assert issued.secret not in everything
    assert DEVICE not in everything
    if enabled:
        assert f"token={issued.token.pk}" in written[0]
        assert "query-secret" not in " ".join(written)
        assert "device_missing" in written[1]

"""The gateway's routes under a server that cannot serve them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx
import pytest
from django.conf import settings
from django.test import Client

from tests.upstream import unused_port

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@pytest.mark.parametrize("path", ["status", "status/", "certificates/filter", "a/%2e%2e/b", "deep/er/"])
@pytest.mark.parametrize("method", METHODS)
def test_django_says_how_to_start_it(method, path):
    if path.startswith("status") and method not in {"GET", "HEAD"}:
        expected = 405 if method != "OPTIONS" else 200
    else:
        expected = 501

    response = Client().generic(
        method, f"/api/v1/proxy/{path}", b"\x00", content_type="application/x", headers={"Accept": "image/png"}
    )

    assert response.status_code == expected
    assert response["X-Request-ID"]
    if expected == 501 and method != "HEAD":
        assert response.json()["code"] == "gateway_not_served"
        assert "make run" in response.json()["detail"]


def test_the_schema_documents_both_routes():
    paths = Client().get("/openapi.json").json()["paths"]

    relay, status = paths["/api/v1/proxy/{path}"], paths["/api/v1/proxy/status"]
    assert set(relay) == {"get", "post", "put", "patch", "delete"}
    for operation in (*relay.values(), *status.values()):
        assert operation["security"] == [{"GatewayToken": []}]
        assert {"401", "429", "503"} <= set(operation["responses"])
    assert {"400", "403", "409", "502", "504"} <= set(relay["get"]["responses"])
    assert "501" not in relay["get"]["responses"]


@pytest.mark.django_db(transaction=True)
def test_runserver_itself():
    port = unused_port()
    command = [sys.executable, "manage.py", "runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        command, cwd=settings.BASE_DIR, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                response = httpx.get(
                    f"http://127.0.0.1:{port}/api/v1/proxy/certificates/filter", timeout=30, trust_env=False
                )
                break
            except httpx.TransportError:
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        process.terminate()
        process.communicate(timeout=60)

    assert response.status_code == 501
    assert response.json()["code"] == "gateway_not_served"

"""The public HTTP caching suite (npm's http-cache-tests) straight to its own server and through the gateway.

A gateway that keeps nothing must come out exactly as no gateway at all. ``.ci/run`` installs the package.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import HTTP_CACHE_TESTS as PACKAGE
from tests.proxy.live import DEVICE
from tests.upstream import unused_port, wait_until

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.http_cache_tests]
#: Gives every request of the suite our credentials.
PRELOAD = """
import http from 'node:http'
const send = http.request
http.request = (options, ...rest) => {
  options.headers = { ...options.headers, 'X-Access-Token': process.env.SECRET, 'X-Device-ID': process.env.DEVICE }
  return send(options, ...rest)
}
"""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The suite's own server in the place of the mirror."""
    port = unused_port("localhost")
    directory = tmp_path_factory.mktemp("suite")
    process = subprocess.Popen(
        ["node", "--no-warnings", "server/server.mjs"],
        cwd=PACKAGE,
        env={
            **os.environ,
            "npm_config_protocol": "http",
            "npm_config_port": str(port),
            "npm_config_pidfile": str(directory / "pid"),
        },
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            assert b"Listening" in process.stdout.readline()
            yield SimpleNamespace(url=f"http://localhost:{port}", directory=directory)
        finally:
            process.kill()


def results(base: str, *, secret: str = "", preload: str = "") -> dict[str, Any]:
    done = subprocess.run(
        ["node", "--no-warnings", *(["--import", preload] if preload else []), "cli.mjs"],
        cwd=PACKAGE,
        env={
            **os.environ,
            "npm_config_base": base,
            "npm_config_id": "",
            "npm_package_config_id": "",
            "SECRET": secret,
            "DEVICE": DEVICE,
        },
        capture_output=True,
        check=True,
        timeout=200,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(450)
def test_it_comes_out_as_without_a_gateway(served, mirror):
    preload = mirror.directory / "credentials.mjs"
    preload.write_text(PRELOAD)
    direct = results(mirror.url)
    relayed = results(served.live.proxy, secret=served.issued.secret, preload=str(preload))
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchanges")

    assert len(direct) >= 300
    different = {name for name in direct if (direct[name] is True) != (relayed[name] is True)}
    passed = sum(result is True for result in relayed.values())
    logger.warning("%d of %d pass, %d differ: %s", passed, len(relayed), len(different), sorted(different))
    # The suite compares Location with what its server sent; that it stays on our side is what we want.
    for name in different:
        kind, said = relayed[name]
        assert (kind, 'header Location is "/api/v1/proxy/test/' in said) == ("Setup", True), (name, said)

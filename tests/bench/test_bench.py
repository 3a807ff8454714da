"""The bench itself: it reads wrk rightly, its figures say what they claim, and it leaves nothing running."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.bench.latency import Latency, percentile
from tests.bench.load import Load, WrkResult, parse_wrk
from tests.bench.nginx import Front
from tests.bench.processes import REPOSITORY, BenchError
from tests.bench.purchases import History, Sales
from tests.bench.report import (
    history_findings,
    latency_findings,
    load_findings,
    load_table,
    ratio,
    sales_table,
    size_name,
    transfer_findings,
)
from tests.bench.transfer import Transfer, bulk_upstream, download, transfers, upload
from tests.upstream import RawUpstream, wait_until

# As wrk 4.1.0 prints it: units of one letter are followed by a space.
REPORT = """Running 2s test @ http://127.0.0.1:9777/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   170.76ms  154.17ms   1.10s    91.76%
    Req/Sec   197.05     77.69   376.00     73.68%
  Latency Distribution
     50%  133.52us
     75%  167.01ms
     90%  252.16ms
     99%    1.25s\x20
  404 requests in 2.07s, 3.84GB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:    195.01
Transfer/sec:      1.50MB
"""


def test_wrk_report_is_read_with_its_units() -> None:
    assert parse_wrk(REPORT) == WrkResult(
        requests=404,
        requests_per_second=195.01,
        bytes_per_second=1.5 * 2**20,
        p50=133.52e-6,
        p99=1.25,
        socket_errors=10,
        bad_statuses=5,
    )


def test_wrk_report_without_errors_counts_none() -> None:
    lines = [line for line in REPORT.splitlines() if "errors" not in line and "Non-2xx" not in line]
    result = parse_wrk("\n".join(lines))
    assert (result.socket_errors, result.bad_statuses) == (0, 0)


def test_half_a_wrk_report_is_refused() -> None:
    with pytest.raises(ValueError, match="99%"):
        parse_wrk(REPORT.replace("99%", "98%"))


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (0.5, 1)])
def test_percentile_is_the_nearest_rank(percent: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_sizes_have_names() -> None:
    assert [size_name(size) for size in (250, 100_000, 10_000_000, 2**30, 256 * 2**20)] == [
        "250 B",
        "100 kB",
        "10 MB",
        "1 GiB",
        "256 MiB",
    ]


def _load(front: str, rate: float, *, connections: int = 32, errors: int = 0) -> Load:
    wrk = WrkResult(1000, rate, rate * 250, 0.001, 0.002, errors, 0)
    return Load(front, 250, connections, wrk, 0.1, 50.0)


def test_ratio_is_taken_under_the_same_load() -> None:
    loads = [_load("auth", 30_000), _load("auth", 10_000, connections=256), _load("ours", 6000)]
    assert ratio(loads, loads[2], "auth") == pytest.approx(0.2)
    assert ratio(loads, _load("ours", 6000, connections=1000), "auth") is None
    assert "0.200" in load_table(loads, "auth").splitlines()[-1]


@pytest.mark.parametrize(("rate", "errors", "met"), [(7500, 0, [True]), (7400, 0, [False]), (7500, 1, [True, False])])
def test_throughput_goal(rate: float, errors: int, met: list[bool]) -> None:
    loads = [_load("auth", 30_000), _load("ours", rate, errors=errors)]
    found = load_findings(loads, front="ours", reference="auth", size=250)
    assert [finding.met for finding in found] == met


@pytest.mark.parametrize(
    ("p50", "p99", "errors", "met"),
    [
        (0.0024, 0.0109, 0, True),
        (0.0026, 0.0109, 0, False),
        (0.0024, 0.0111, 0, False),
        (0.0024, 0.0109, 1, False),
    ],
)
def test_latency_goal(p50: float, p99: float, errors: int, met: bool) -> None:
    measured = [
        Latency("upstream", 500, 1000, 0, 0.0005, 0.001, 0.0),
        Latency("ours", 500, 1000, errors, p50, p99, 0.0),
    ]
    assert [finding.met for finding in latency_findings(measured, front="ours", baseline="upstream")] == [met]


@pytest.mark.parametrize(("rate", "growth", "met"), [(900, 19.9, True), (890, 0, False), (1000, 20.1, False)])
def test_transfer_goal(rate: float, growth: float, met: bool) -> None:
    measured = [Transfer("nginx", "up", 2**30, 1000, 0), Transfer("ours", "up", 2**30, rate, growth)]
    assert [finding.met for finding in transfer_findings(measured, front="ours", reference="nginx")] == [met]


@pytest.mark.parametrize(("seconds", "met"), [(0.0199, True), (0.0201, False)])
def test_history_goal(seconds: float, met: bool) -> None:
    assert [finding.met for finding in history_findings(History(100_000, seconds))] == [met]


def test_sales_are_shown_by_buyers_and_threads() -> None:
    text = sales_table([Sales("different", 8, 900, 90.0, 0.01, 0.02), Sales("one", 1, 400, 40.0, 0.02, 0.03)])
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["different", "buyers", "8", "900", "90", "10.00", "20.00"],
        ["one", "buyer", "1", "400", "40", "20.00", "30.00"],
    ]


@pytest.mark.slow
def test_purchases_are_measured_without_nginx_and_wrk(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--only=purchases", "--purchase-seconds=2", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": "/nowhere", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    measured = json.loads(file.read_text())["purchases"]
    assert [(one["buyers"], one["threads"]) for one in measured["sales"]] == [
        ("different", 1),
        ("different", 8),
        ("one", 1),
        ("one", 8),
    ]
    assert all(one["purchases"] > 0 and 0 < one["p50"] <= one["p99"] for one in measured["sales"])
    assert measured["history"]["page_seconds"] > 0
    assert _processes_that_mention(str(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_bulk_upstream_counts_what_it_gets(tmp_path: Path) -> None:
    size = 3_000_001
    with bulk_upstream(tmp_path / "bulk") as (url, processes):
        front = Front("bulk", url, processes)
        assert download(front, size) > 0
        assert upload(front, size) > 0
        with httpx.Client(base_url=url, trust_env=False) as client:
            chunked = client.post("/upload", content=iter([b"a" * 70_000, b"b", b"c" * 5]))
            assert chunked.json() == 70_006
            assert client.post("/upload", content=b"").json() == 0
        results = transfers([(front, processes)], size=size, rounds=1)
        assert [(one.direction, one.size) for one in results] == [("down", size), ("up", size)]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort",
        b"",
    ],
)
def test_a_wrong_transfer_is_no_figure(answer: bytes) -> None:
    with RawUpstream(answer) as upstream, pytest.raises(BenchError):
        download(Front("broken", upstream.url, list), 100)


def _bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench", "--without-gateway", *arguments]


@pytest.mark.slow
@pytest.mark.nginx
@pytest.mark.wrk
def test_bench_of_nginx_alone_runs_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--seconds=1", "--connections=8", "--sizes=250,100000", "--rate=500", "--transfer-mib=16"]
    done = subprocess.run(
        _bench(*arguments, "--json", str(file)),
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(file.read_text())
    assert [(one["front"], one["size"], one["errors"]) for one in figures["load"]] == [
        ("nginx proxy_pass", 250, 0),
        ("nginx auth_request", 250, 0),
        ("nginx proxy_pass", 100_000, 0),
        ("nginx auth_request", 100_000, 0),
    ]
    assert all(one["wrk"]["requests"] > 0 and one["cpu_per_1000"] > 0 for one in figures["load"])
    assert {one["front"]: one["errors"] for one in figures["latency"]} == {
        "upstream": 0,
        "nginx proxy_pass": 0,
        "nginx auth_request": 0,
    }
    assert len(figures["transfer"]) == 4
    assert _processes_that_mention(str(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.slow
@pytest.mark.nginx
@pytest.mark.wrk
def test_interrupted_bench_leaves_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen(
        _bench("--seconds=60", "--connections=1", "--only=load"),
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: len(_processes_that_mention(str(tmp_path))) >= 3, seconds=20, what="three nginx")
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (130, b"bench: stopped\n")
    wait_until(lambda: not _processes_that_mention(str(tmp_path)), what="the end of every nginx")
    assert list(tmp_path.iterdir()) == []


def _processes_that_mention(text: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if text in line and process.pid != os.getpid():
            found.append(line)
    return found


@pytest.mark.parametrize("missing", ["wrk", "nginx"])
def test_missing_program_is_named(tmp_path: Path, missing: str) -> None:
    for present in {"wrk", "nginx"} - {missing}:
        program = tmp_path / present
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    script = f"import sys, tests.bench.nginx as nginx; nginx.SYSTEM_FOLDERS = {str(tmp_path)!r}\n"
    # Debian keeps nginx in /usr/sbin, where the bench looks even if PATH does not; here it must find nothing.
    script += "from tests.bench.__main__ import main\n"
    script += "sys.exit(main(['--without-gateway', '--only=load', '--seconds=1']))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"bench: {missing} is missing")

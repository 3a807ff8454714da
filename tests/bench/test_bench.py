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

from tests.bench.__main__ import estimated_minutes, read_options
from tests.bench.fronts import AUTH, EDGE, GATEWAY, PASS
from tests.bench.latency import Latency, percentile
from tests.bench.load import Load, WrkResult, parse_wrk
from tests.bench.loads import Cell, cells_of, in_turn, seconds_of
from tests.bench.nginx import Front
from tests.bench.processes import REPOSITORY, BenchError, signals_held_back
from tests.bench.purchases import History, Sales
from tests.bench.report import (
    Ratio,
    error_findings,
    history_findings,
    latency_findings,
    load_line,
    load_table,
    ratio,
    ratio_findings,
    rows_of,
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
        seconds=2.07,
        requests_per_second=195.01,
        bytes_per_second=1.5 * 2**20,
        p50=133.52e-6,
        p99=1.25,
        socket_errors=6,
        timeouts=4,
        bad_statuses=5,
    )


def test_wrk_report_without_errors_counts_none() -> None:
    lines = [line for line in REPORT.splitlines() if "errors" not in line and "Non-2xx" not in line]
    result = parse_wrk("\n".join(lines))
    assert (result.socket_errors, result.timeouts, result.bad_statuses, result.errors) == (0, 0, 0, 0)


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


def cells(table: str) -> list[list[str]]:
    """The head and the rows of a table."""
    head, _rule, *rows = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]


def _load(
    front: str,
    rate: float,
    *,
    size: int = 250,
    connections: int = 32,
    workers: int = 1,
    round: int = 0,
    errors: tuple[int, int, int] = (0, 0, 0),
    requests: int = 1000,
) -> Load:
    wrk = WrkResult(requests, 5.0, rate, rate * size, 0.001, 0.002, *errors)
    return Load(front, workers, size, connections, round, wrk, 0.1, 50.0)


def _ratio(loads: list[Load], of: Load, front: str) -> Ratio | None:
    [row] = [row for row in rows_of(loads) if row.loads[0] is of]
    return ratio(rows_of(loads), row, front)


def test_ratio_is_taken_under_the_same_load() -> None:
    alone = [_load("ours", 6000, connections=1000), _load("ours", 6000, workers=2), _load("ours", 6000, size=100)]
    loads = [_load("auth", 30_000), _load("auth", 10_000, connections=256), _load("ours", 6000), *alone]
    assert _ratio(loads, loads[2], "auth") == Ratio(0.2, 0.2, 0.2, 1)
    assert [_ratio(loads, one, "auth") for one in alone] == [None, None, None]


def test_ratio_is_that_of_each_round_and_its_median() -> None:
    """The machine was half as fast in the second round: no ratio of different rounds may be taken."""
    loads = [
        *(_load("auth", rate, round=round) for round, rate in enumerate((30_000, 15_000, 30_000))),
        *(_load("ours", rate, round=round) for round, rate in enumerate((6000, 4500, 9000))),
    ]
    found = _ratio(loads, loads[3], "auth")
    assert found == Ratio(0.3, 0.2, 0.3, 3)
    assert str(found) == "0.300 (0.200-0.300)"


def test_large_answers_count_by_the_bytes_that_came() -> None:
    """A load of 10 MB answers leaves many of them unfinished, which is no reason to call the front slow."""
    wrk = WrkResult(3, 5.0, 0.6, 1e9, 2.0, 4.0, 0, 0, 0)
    assert Load("ours", 1, 10_000_000, 1000, 0, wrk, 0.1, 50.0).answers_per_second == pytest.approx(100)
    assert Load("ours", 1, 250, 1000, 0, wrk, 0.1, 50.0).answers_per_second == pytest.approx(0.6)


@pytest.mark.parametrize(("connections", "requests", "told"), [(32, 100, True), (32, 99, False), (1000, 999, False)])
def test_few_answers_have_no_percentiles(connections: int, requests: int, told: bool) -> None:
    one = _load("ours", 20, connections=connections, requests=requests)
    assert (one.p50, one.p99) == ((0.001, 0.002) if told else (None, None))
    assert cells(load_table([one], []))[-1][6:8] == (["1.00", "2.00"] if told else ["-", "-"])


def test_table_has_a_row_for_each_load_and_a_column_for_each_reference() -> None:
    loads = [
        _load("auth", 30_000),
        _load("pass", 40_000),
        _load("ours", 10_000, errors=(1, 0, 0)),
        _load("ours", 12_000, round=1, errors=(0, 2, 3)),
        _load("auth", 20_000, round=1),
    ]
    head, *rows = cells(load_table(loads, ["auth", "pass"]))
    assert head[-2:] == ["of auth", "of pass"]
    assert rows == [
        ["auth", "1", "250 B", "32", "25000", "6.2", "1.00", "2.00", "0", "0.100", "50", "", "0.750"],
        ["pass", "1", "250 B", "32", "40000", "10.0", "1.00", "2.00", "0", "0.100", "50", "1.333", ""],
        [
            *("ours", "1", "250 B", "32", "11000", "2.8", "1.00", "2.00", "6", "0.100", "50"),
            *("0.467 (0.333-0.600)", "0.250"),
        ],
    ]


@pytest.mark.parametrize(
    ("front", "reference", "size", "share", "met"),
    [
        (GATEWAY, AUTH, 250, 0.25, True),
        (GATEWAY, AUTH, 250, 0.249, False),
        (GATEWAY, PASS, 10_000_000, 0.9, True),
        (GATEWAY, PASS, 10_000_000, 0.89, False),
        (EDGE, AUTH, 250, 0.5, True),
        (EDGE, AUTH, 250, 0.49, False),
        (EDGE, PASS, 10_000_000, 0.9, True),
        (EDGE, PASS, 10_000_000, 0.89, False),
    ],
)
def test_throughput_goals(front: str, reference: str, size: int, share: float, met: bool) -> None:
    found = ratio_findings([_load(reference, 1000, size=size), _load(front, 1000 * share, size=size)])
    assert [finding.met for finding in found] == [met]
    assert f"{share:.3f} of {reference}" in found[0].text


def test_throughput_goals_hang_on_one_load() -> None:
    for workers, connections, size in ((2, 32, 250), (1, 256, 250), (1, 32, 100_000)):
        loads = [
            _load(front, rate, workers=workers, connections=connections, size=size)
            for front, rate in ((AUTH, 1000), (PASS, 1000), (GATEWAY, 1))
        ]
        assert ratio_findings(loads) == []
    assert ratio_findings([_load(GATEWAY, 1000)]) == []


def test_errors_at_many_connections_are_a_goal_and_elsewhere_a_miss() -> None:
    clean = [_load("ours", 1000, connections=1000), _load("nginx", 1000, errors=(1, 1, 1))]
    assert [finding.met for finding in error_findings(clean, fronts=["ours"])] == [True]
    late = [_load("ours", 1000, connections=1000, errors=(0, 7, 0)), _load("ours", 1000, size=100, errors=(1, 0, 2))]
    found = error_findings(late, fronts=["ours"])
    assert [finding.met for finding in found] == [False, False, False]
    assert "7 errors in 1000 requests" in found[0].text
    assert "0 bad statuses, 0 of sockets, 7 timeouts" in found[1].text
    assert "2 bad statuses, 1 of sockets, 0 timeouts" in found[2].text


def test_progress_tells_the_kinds_of_errors() -> None:
    assert load_line(_load("ours", 1000)) == (
        "ours, 250 B, 32 connections, 1 worker: 1000 requests/s, 0 MB/s, no errors"
    )
    assert load_line(_load("ours", 1000, errors=(1, 2, 3))).endswith("3 bad statuses, 1 of sockets, 2 timeouts")


def test_loads_that_goals_hang_on_have_rounds() -> None:
    cells = [
        cell
        for workers in (1, 2)
        for cell in cells_of(workers, sizes=[250, 10_000_000], connections=[32, 256], rounds=5, seconds=2)
    ]
    assert [(cell.workers, cell.size, cell.connections) for cell in cells if cell.rounds == 5] == [
        (1, 250, 32),
        (1, 10_000_000, 32),
    ]
    assert {cell.rounds for cell in cells} == {1, 5}


def test_large_answers_to_many_get_time_to_come_but_not_for_ever() -> None:
    [small, many, most] = [
        Cell(1, size, connections, 1, seconds_of(size, connections, 5))
        for size, connections in ((250, 1000), (10_000_000, 256), (10_000_000, 100_000))
    ]
    assert (small.seconds, many.seconds, most.seconds) == (5, 7, 25)
    # An answer that takes longer than its load would never be counted as late.
    assert [cell.timeout <= cell.seconds for cell in (small, many, most)] == [True, True, True]


def test_each_turn_begins_with_another_front() -> None:
    fronts = [Front(name, "http://127.0.0.1", list) for name in "abc"]
    assert ["".join(front.name for front in in_turn(fronts, turn)) for turn in range(4)] == ["abc", "bca", "cab", "abc"]


def test_whole_bench_takes_less_than_it_says() -> None:
    options = read_options([])
    assert options.only == ["load", "latency", "transfer", "purchases", "growth"]
    assert estimated_minutes(options) < 25


def test_growth_takes_less_than_four_minutes() -> None:
    assert estimated_minutes(read_options(["--only=growth"])) < 4


@pytest.mark.parametrize(
    "wrong",
    [
        "--only=nothing",
        "--fronts=caddy",
        "--workers=0",
        "--seconds=0",
        "--sizes=",
        "--fronts=gateway --without-gateway",
    ],
)
def test_wrong_options_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(wrong.split())
    assert "error:" in capsys.readouterr().err


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
    assert cells(text)[1:] == [
        ["different buyers", "8", "900", "90", "10.00", "20.00"],
        ["one buyer", "1", "400", "40", "20.00", "30.00"],
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_purchases_are_measured_without_nginx_and_wrk(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--only=purchases", "--purchase-seconds=2", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": "/nowhere", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=360,
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
    _wait_until_no_process_mentions(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_bulk_upstream_counts_what_it_gets(tmp_path: Path) -> None:
    size = 3_000_001
    with bulk_upstream(tmp_path / "bulk") as (url, processes):
        front = Front("bulk", url, processes)
        assert download(front, size) > 0
        assert upload(front, size) > 0
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
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
@pytest.mark.timeout(400)
def test_bench_of_nginx_alone_runs_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--seconds=1", "--connections=8", "--sizes=250,10000000", "--workers=1,2", "--rate=500"]
    arguments += ["--latency-seconds=1", "--transfer-mib=16"]
    done = subprocess.run(
        _bench(*arguments, "--json", str(file)),
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=360,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(file.read_text())
    assert sorted((one["front"], one["workers"], one["size"]) for one in figures["load"]) == [
        (front, workers, size) for front in (AUTH, PASS) for workers in (1, 2) for size in (250, 10_000_000)
    ]
    # How many answers come too late is the machine's, not the bench's.
    assert all(one["wrk"]["socket_errors"] == one["wrk"]["bad_statuses"] == 0 for one in figures["load"])
    assert all(one["answers_per_second"] > 0 and one["resident_mib"] > 0 for one in figures["load"])
    assert {(one["front"], one["to"]) for one in figures["ratios"]} == {(AUTH, PASS), (PASS, AUTH)}
    assert all(one["wrk"]["requests"] > 0 and one["cpu_per_1000"] > 0 for one in figures["load"])
    assert {one["front"]: one["errors"] for one in figures["latency"]} == {
        "upstream": 0,
        "nginx proxy_pass": 0,
        "nginx auth_request": 0,
    }
    assert len(figures["transfer"]) == 4
    _wait_until_no_process_mentions(str(tmp_path))
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
    wait_until(lambda: len(_processes_that_mention(str(tmp_path))) >= 3, seconds=60, what="three nginx")
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=90)
    assert (child.returncode, errors) == (130, b"bench: stopped\n")
    _wait_until_no_process_mentions(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_signal_waits_until_what_is_started_is_known() -> None:
    known = False
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), signals_held_back():
            signal.raise_signal(signal.SIGTERM)
            known = True
        assert known
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_until_no_process_mentions(text: str) -> None:
    # What was killed may need a moment to be gone.
    wait_until(lambda: not _processes_that_mention(text), seconds=10, what="the end of all that was started")


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
    script = f"import sys, tests.shipped_nginx as nginx; nginx.SYSTEM_FOLDERS = {str(tmp_path)!r}\n"
    # Debian keeps nginx in /usr/sbin, where the bench looks even if PATH does not; here it must find nothing.
    script += "from tests.bench.__main__ import main\n"
    script += "sys.exit(main(['--without-gateway', '--only=load', '--seconds=1']))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"bench: {missing} is missing")

"""Runs the whole comparison; ``python -m tests.bench --help`` says what can be chosen."""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.bench import report
from tests.bench.gateway import gateway
from tests.bench.latency import latencies
from tests.bench.load import Load, load, wrk_program
from tests.bench.nginx import SMALL_SIZE, Front, StaticUpstream, proxy_front, static_upstream
from tests.bench.processes import BenchError, allow_many_files
from tests.bench.profiling import profile
from tests.bench.purchases import purchases
from tests.bench.transfer import bulk_upstream, transfers

PASS = "nginx proxy_pass"
AUTH = "nginx auth_request"
GATEWAY = "gateway"
DIRECT = "upstream"
PARTS = ("load", "latency", "transfer", "purchases")
QUICK_SECONDS = 5
QUICK_TRANSFER_MIB = 256
QUICK_PURCHASE_SECONDS = 4


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def whole_numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part]
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError("whole numbers above zero, separated by commas")
    return numbers


def parts(text: str) -> list[str]:
    chosen = [part for part in text.split(",") if part]
    if not chosen or not set(chosen) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"some of {','.join(PARTS)}")
    return chosen


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures the gateway beside nginx (throughput, added latency, large transfers) and purchases of "
        "tokens. Loopback only.",
    )
    parser.add_argument("--seconds", type=int, default=30, help="of each load (default 30)")
    parser.add_argument("--connections", type=whole_numbers, default=[32, 256, 1000], metavar="N,...")
    parser.add_argument(
        "--sizes",
        type=whole_numbers,
        default=[SMALL_SIZE],
        metavar="BYTES,...",
        help="of the answers (default 250; 100000 and 10000000 are the usual others)",
    )
    parser.add_argument("--workers", type=int, default=1, help="gateway worker processes (default 1)")
    parser.add_argument("--rate", type=int, default=500, help="requests per second of the latency part")
    parser.add_argument("--transfer-mib", type=int, default=1024, help="size of the large transfers")
    parser.add_argument("--purchase-seconds", type=int, default=24, help="of all purchases together (default 24)")
    parser.add_argument("--only", type=parts, default=list(PARTS), metavar="PART,...", help=",".join(PARTS))
    parser.add_argument("--without-gateway", action="store_true", help="nginx alone, to check the machine")
    parser.add_argument("--profile", action="store_true", help="also say where a worker spends its time")
    parser.add_argument("--quick", action="store_true", help="5 s loads and 256 MiB: a smoke test")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds = min(options.seconds, QUICK_SECONDS)
        options.transfer_mib = min(options.transfer_mib, QUICK_TRANSFER_MIB)
        options.purchase_seconds = min(options.purchase_seconds, QUICK_PURCHASE_SECONDS)
    return options


def measure_loads(fronts: Sequence[Front], options: argparse.Namespace) -> list[Load]:
    done = []
    for size in options.sizes:
        for connections in options.connections:
            for front in fronts:
                one = load(front, size=size, connections=connections, seconds=options.seconds)
                done.append(one)
                say(
                    f"  {front.name}, {report.size_name(size)}, {connections} connections: "
                    f"{one.wrk.requests_per_second:.0f} requests/s, {one.errors} errors"
                )
    return done


class Bench:
    """One run: what was measured, and where its servers keep their files."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.findings: list[report.Finding] = []
        self.figures: dict[str, Any] = {
            "machine": {
                "cpus": psutil.cpu_count(),
                "load_before": os.getloadavg()[0],
                "kernel": platform.release(),
                "python": platform.python_version(),
            },
            "options": {name: value for name, value in vars(options).items() if name != "json"},
        }

    def run(self) -> None:
        chosen = self.options.only
        if "load" in chosen or "latency" in chosen:
            self._small_requests()
        if "transfer" in chosen:
            self._large_transfers()
        if "purchases" in chosen and not self.options.without_gateway:
            self._purchases()
        if self.options.profile and not self.options.without_gateway:
            self._profile()

    def _small_requests(self) -> None:
        options = self.options
        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(
                static_upstream(self.directory / "static", [size for size in options.sizes if size != SMALL_SIZE])
            )
            fronts = self._nginx_fronts(stack, upstream)
            if not options.without_gateway:
                say("starting the gateway ...")
                running = stack.enter_context(
                    gateway(self.directory / "gateway", target=upstream.url, workers=options.workers)
                )
                fronts.append(running.front)
            if "load" in options.only:
                self._loads(fronts)
            if "latency" in options.only:
                self._latency([Front(DIRECT, upstream.url, list), *fronts])

    def _nginx_fronts(self, stack: contextlib.ExitStack, upstream: StaticUpstream) -> list[Front]:
        return [
            stack.enter_context(proxy_front(self.directory, PASS, target=upstream.url)),
            stack.enter_context(proxy_front(self.directory, AUTH, target=upstream.url, auth_url=upstream.auth_url)),
        ]

    def _loads(self, fronts: Sequence[Front]) -> None:
        options = self.options
        say(f"load: {options.seconds} s each, one nginx worker, {options.workers} gateway worker(s)")
        loads = measure_loads(fronts, options)
        say("\n" + report.load_table(loads, AUTH) + "\n")
        self.figures["load"] = [
            {**one.as_json(), "errors": one.errors, "ratio_to_auth_request": report.ratio(loads, one, AUTH)}
            for one in loads
        ]
        self.findings += report.load_findings(loads, front=GATEWAY, reference=AUTH, size=SMALL_SIZE)

    def _latency(self, fronts: Sequence[Front]) -> None:
        options = self.options
        say(f"latency: {options.rate} requests/s, open loop")
        measured = latencies(fronts, rate=options.rate, seconds=options.seconds)
        say("\n" + report.latency_table(measured, DIRECT) + "\n")
        self.figures["latency"] = [one.as_json() for one in measured]
        if not options.without_gateway:
            self.findings += report.latency_findings(measured, front=GATEWAY, baseline=DIRECT)

    def _large_transfers(self) -> None:
        size = self.options.transfer_mib * 2**20
        with contextlib.ExitStack() as stack:
            url, bulk_processes = stack.enter_context(bulk_upstream(self.directory / "bulk"))
            nginx = stack.enter_context(proxy_front(self.directory / "bulk", PASS, target=url))
            fronts = [
                (Front(DIRECT, url, bulk_processes), bulk_processes),
                (nginx, nginx.processes),
            ]
            if not self.options.without_gateway:
                say("starting the gateway ...")
                running = stack.enter_context(gateway(self.directory / "bulk-gateway", target=url))
                fronts.append((running.front, running.workers))
            say(f"transfer: {report.size_name(size)} down and up, one connection")
            measured = transfers(fronts, size=size)
        say("\n" + report.transfer_table(measured) + "\n")
        self.figures["transfer"] = [one.as_json() for one in measured]
        self.findings += report.transfer_findings(measured, front=GATEWAY, reference=PASS)

    def _purchases(self) -> None:
        say(f"purchases: {self.options.purchase_seconds} s, one process")
        sales, history = purchases(self.directory / "purchases", seconds=self.options.purchase_seconds)
        say("\n" + report.sales_table(sales) + "\n")
        self.figures["purchases"] = {"sales": [one.as_json() for one in sales], "history": history.as_json()}
        self.findings += report.history_findings(history)

    def _profile(self) -> None:
        say("profile: 32 connections")
        with static_upstream(self.directory / "profiled-static", []) as upstream:
            text = profile(
                self.directory / "profiled",
                target=upstream.url,
                connections=32,
                seconds=min(self.options.seconds, 15),
            )
        say("\n" + text + "\n")
        self.figures["profile"] = text


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    # SIGTERM unwinds like Ctrl-C, so that every server started here is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    allow_many_files()
    try:
        if options.only != ["purchases"]:
            wrk_program()
        with tempfile.TemporaryDirectory(prefix="zenzefi-bench-") as name:
            bench = Bench(options, Path(name))
            bench.run()
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("bench: stopped\n")
        return 130
    if bench.findings:
        say(report.verdict(bench.findings))
        bench.figures["findings"] = [{"text": one.text, "met": one.met} for one in bench.findings]
    if options.json is not None:
        options.json.write_text(json.dumps(bench.figures, indent=2) + "\n")
    return 1 if options.check and not all(finding.met for finding in bench.findings) else 0


if __name__ == "__main__":
    sys.exit(main())

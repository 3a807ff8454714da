"""Runs the whole comparison; ``python -m tests.bench --help`` says what can be chosen."""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from tests.bench import report
from tests.bench.fronts import AUTH, DIRECT, EDGE, FRONTS, GATEWAY, NGINX, PASS, opened
from tests.bench.gateway import gateway
from tests.bench.growth import CONNECTIONS, growth
from tests.bench.growth import estimated_seconds as estimated_growth_seconds
from tests.bench.latency import latencies
from tests.bench.load import Load, wrk_program
from tests.bench.loads import Cell, cells_of, measure, warm
from tests.bench.nginx import SMALL_SIZE, Front, proxy_front, static_upstream
from tests.bench.processes import BenchError, allow_many_files
from tests.bench.profiling import profile
from tests.bench.purchases import purchases
from tests.bench.transfer import bulk_upstream, transfers

REFERENCES = (AUTH, PASS)
OURS = (GATEWAY, EDGE)
PARTS = ("load", "latency", "transfer", "purchases", "growth")
#: Until a gateway runs and has sold itself a token, and until it has stopped, on the machine this was written on.
START_SECONDS = 30
PROFILE_SECONDS = 15


QUICK = {
    "seconds": 1,
    "rounds": 1,
    "latency_seconds": 3,
    "transfer_mib": 256,
    "purchase_seconds": 4,
    "growth_seconds": 1,
    "growth_footprints": 200,
}
QUICK_TOKENS = 10_000
QUICK_CONNECTIONS = 256


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def whole_numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part]
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError("whole numbers above zero, separated by commas")
    return numbers


def positive(text: str) -> int:
    [number] = whole_numbers(text)
    return number


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads names separated by commas; they come in the order in which they are known."""

    def read(text: str) -> list[str]:
        chosen = {part for part in text.split(",") if part}
        if not chosen or not chosen <= set(known):
            raise argparse.ArgumentTypeError(f"some of {','.join(known)}")
        return [name for name in known if name in chosen]

    return read


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures the gateway beside nginx (throughput, added latency, large transfers), purchases of "
        "tokens, and what many tokens cost. Loopback only; everything takes less than 25 minutes.",
    )
    parser.add_argument("--only", type=some_of(PARTS), default=list(PARTS), metavar="PART,...", help=",".join(PARTS))
    parser.add_argument(
        "--fronts", type=some_of(list(FRONTS)), default=list(FRONTS), metavar="FRONT,...", help=",".join(FRONTS)
    )
    parser.add_argument("--without-gateway", action="store_true", help="nginx alone, to check the machine")
    parser.add_argument(
        "--workers",
        type=whole_numbers,
        default=[1, 2],
        metavar="N,...",
        help="processes of each front (default 1,2); added latency is measured with the first number of them",
    )
    parser.add_argument(
        "--sizes",
        type=whole_numbers,
        default=[SMALL_SIZE, 100_000, 10_000_000],
        metavar="BYTES,...",
        help="of the answers (default 250,100000,10000000)",
    )
    parser.add_argument("--connections", type=whole_numbers, default=[32, 256, 1000], metavar="N,...")
    parser.add_argument("--seconds", type=positive, default=5, help="of each load at least (default 5)")
    parser.add_argument("--rounds", type=positive, default=5, help="of the loads that a goal hangs on (default 5)")
    parser.add_argument("--rate", type=positive, default=500, help="requests per second of the latency part")
    parser.add_argument("--latency-seconds", type=positive, default=20, help="of each front (default 20)")
    parser.add_argument("--transfer-mib", type=positive, default=1024, help="size of the large transfers")
    parser.add_argument("--purchase-seconds", type=positive, default=24, help="of all purchases together (default 24)")
    parser.add_argument(
        "--growth-tokens",
        type=whole_numbers,
        default=[10, 10_000, 1_000_000],
        metavar="N,...",
        help="in PostgreSQL, in tens (default 10,10000,1000000)",
    )
    parser.add_argument(
        "--growth-active",
        type=whole_numbers,
        default=[10, 1000, 50_000],
        metavar="N,...",
        help="of them in use (default 10,1000,50000)",
    )
    parser.add_argument(
        "--growth-footprints",
        type=positive,
        default=2000,
        metavar="N",
        help="tokens of each kind whose memory in Redis is measured (default 2000)",
    )
    parser.add_argument("--growth-seconds", type=positive, default=3, help="of each load of it (default 3)")
    parser.add_argument("--profile", action="store_true", help="also say where a worker spends its time")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one worker, short loads, few tokens")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    options = parser.parse_args(arguments)
    if options.without_gateway:
        options.fronts = [name for name in options.fronts if name in NGINX]
        options.only = [part for part in options.only if part not in ("purchases", "growth")]
    if not options.fronts:
        parser.error("no front is left to measure")
    if options.quick:
        options.workers = options.workers[:1]
        for name, most in QUICK.items():
            setattr(options, name, min(getattr(options, name), most))
        options.connections = [number for number in options.connections if number <= QUICK_CONNECTIONS] or [
            QUICK_CONNECTIONS
        ]
        options.growth_tokens = [number for number in options.growth_tokens if number <= QUICK_TOKENS] or [QUICK_TOKENS]
    return options


def estimated_minutes(options: argparse.Namespace) -> float:
    """About how long it all takes: what the loads last and what starting the servers takes beside them."""
    fronts = len(options.fronts)
    ours = len([name for name in options.fronts if name not in NGINX])
    seconds = 0.0
    if "load" in options.only:
        for workers in options.workers:
            cells = cells_with(options, workers)
            seconds += ours * START_SECONDS + sum(fronts * cell.rounds * (cell.seconds + 0.5) for cell in cells)
    if "latency" in options.only:
        seconds += (fronts + 1) * (options.latency_seconds + 2)
    if "transfer" in options.only:
        seconds += START_SECONDS + options.transfer_mib / 1024 * 40
    if "purchases" in options.only:
        seconds += START_SECONDS + options.purchase_seconds
    if "growth" in options.only:
        seconds += estimated_growth_seconds(options.growth_tokens, options.growth_active, options.growth_seconds)
    return seconds / 60


def cells_with(options: argparse.Namespace, workers: int) -> list[Cell]:
    return cells_of(
        workers,
        sizes=options.sizes,
        connections=options.connections,
        rounds=options.rounds,
        seconds=options.seconds,
    )


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
        if "purchases" in chosen:
            self._purchases()
        if "growth" in chosen:
            self._growth()
        if self.options.profile and not self.options.without_gateway:
            self._profile()

    def _small_requests(self) -> None:
        """All fronts with as many workers each, then all of them with the next number."""
        options = self.options
        loads: list[Load] = []
        for workers in options.workers if "load" in options.only else options.workers[:1]:
            directory = self.directory / f"workers-{workers}"
            with contextlib.ExitStack() as stack:
                upstream = stack.enter_context(
                    static_upstream(directory / "static", [size for size in options.sizes if size != SMALL_SIZE])
                )
                say(f"starting {', '.join(options.fronts)} with {workers} worker(s) each ...")
                fronts = stack.enter_context(
                    opened(options.fronts, directory=directory, upstream=upstream, workers=workers)
                )
                if "load" in options.only:
                    warm(fronts)
                    for one in measure(fronts, cells_with(options, workers)):
                        loads.append(one)
                        say(f"  {report.load_line(one)}")
                if "latency" in options.only and workers == options.workers[0]:
                    self._latency([Front(DIRECT, upstream.url, list), *fronts])
        if loads:
            self._report_loads(loads)

    def _report_loads(self, loads: Sequence[Load]) -> None:
        rows = report.rows_of(loads)
        say("\n" + report.load_table(loads, REFERENCES) + "\n")
        self.figures["load"] = [one.as_json() for one in loads]
        self.figures["ratios"] = [
            {
                "front": row.front,
                "workers": row.workers,
                "size": row.size,
                "connections": row.connections,
                "to": reference,
                **asdict(found),
            }
            for row in rows
            for reference in REFERENCES
            if row.front != reference and (found := report.ratio(rows, row, reference)) is not None
        ]
        self.findings += report.ratio_findings(loads)
        self.findings += report.error_findings(loads, fronts=self._ours({one.front for one in loads}))

    def _ours(self, names: Collection[str]) -> list[str]:
        return [name for name in OURS if name in names]

    def _latency(self, fronts: Sequence[Front]) -> None:
        options = self.options
        say(f"latency: {options.rate} requests/s, open loop")
        measured = latencies(fronts, rate=options.rate, seconds=options.latency_seconds)
        say("\n" + report.latency_table(measured, DIRECT) + "\n")
        self.figures["latency"] = [one.as_json() for one in measured]
        for front in self._ours({front.name for front in fronts}):
            self.findings += report.latency_findings(measured, front=front, baseline=DIRECT)

    def _large_transfers(self) -> None:
        size = self.options.transfer_mib * 2**20
        with contextlib.ExitStack() as stack:
            url, bulk_processes = stack.enter_context(bulk_upstream(self.directory / "bulk"))
            nginx = stack.enter_context(proxy_front(self.directory / "bulk", PASS, target=url))
            fronts = [
                (Front(DIRECT, url, bulk_processes), bulk_processes),
                (nginx, nginx.processes),
            ]
            if "gateway" in self.options.fronts:
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

    def _growth(self) -> None:
        options = self.options
        say(f"growth: {CONNECTIONS} connections, one gateway worker, {options.growth_seconds} s each load")
        with static_upstream(self.directory / "growth-static", []) as upstream:
            measured = growth(
                self.directory / "growth",
                target=upstream.url,
                stored=options.growth_tokens,
                active=options.growth_active,
                seconds=options.growth_seconds,
                footprints=options.growth_footprints,
                say=say,
            )
        say("\n" + report.warm_table(measured.warm))
        say("\n" + report.cold_table(measured.cold))
        say("\n" + report.footprint_table(measured.footprints) + "\n")
        self.figures["growth"] = measured.as_json()
        self.findings += report.growth_findings(measured)

    def _profile(self) -> None:
        say("profile: 32 connections")
        with static_upstream(self.directory / "profiled-static", []) as upstream:
            text = profile(self.directory / "profiled", target=upstream.url, connections=32, seconds=PROFILE_SECONDS)
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
            say(f"about {estimated_minutes(options):.0f} minutes")
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

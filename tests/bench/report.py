"""The figures as text, and what they say about the goals."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.fronts import AUTH, EDGE, GATEWAY, PASS
from tests.bench.growth import Cold, Footprint, Growth, Warm
from tests.bench.latency import Latency
from tests.bench.load import Load
from tests.bench.loads import is_goal
from tests.bench.nginx import SMALL_SIZE
from tests.bench.purchases import History, Sales
from tests.bench.transfer import Transfer

ADDED_P50_GOAL = 0.002
ADDED_P99_GOAL = 0.010
GROWTH_GOAL_MIB = 20.0
RATE_GOAL = 0.9
FIRST_PAGE_GOAL = 0.020
MANY_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class RatioGoal:
    """A front's rate over that of another, of answers of one size."""

    front: str
    reference: str
    size: int
    at_least: float


RATIO_GOALS = (
    RatioGoal(GATEWAY, AUTH, SMALL_SIZE, 0.25),
    RatioGoal(GATEWAY, PASS, 10_000_000, 0.9),
    RatioGoal(EDGE, AUTH, SMALL_SIZE, 0.5),
    RatioGoal(EDGE, PASS, 10_000_000, 0.9),
)


@dataclass(frozen=True, slots=True)
class Finding:
    text: str
    met: bool


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, and aligned for a terminal; the first column is text, the others are figures."""
    widths = [max(3, *(len(row[column]) for row in [head, *rows])) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def size_name(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size} B"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of answers carried, to those of another front in the same round: the median of all rounds, and its spread."""

    median: float
    least: float
    most: float
    rounds: int

    def __str__(self) -> str:
        spread = f" ({self.least:.3f}-{self.most:.3f})" if self.rounds > 1 else ""
        return f"{self.median:.3f}{spread}"


@dataclass(frozen=True, slots=True)
class Row:
    """All rounds of one front under one load: figures are medians, errors and requests those of all."""

    loads: Sequence[Load]

    @property
    def front(self) -> str:
        return self.loads[0].front

    @property
    def workers(self) -> int:
        return self.loads[0].workers

    @property
    def size(self) -> int:
        return self.loads[0].size

    @property
    def connections(self) -> int:
        return self.loads[0].connections

    @property
    def requests(self) -> int:
        return sum(one.wrk.requests for one in self.loads)

    @property
    def errors(self) -> int:
        return sum(one.wrk.errors for one in self.loads)

    @property
    def where(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        return f"{size_name(self.size)}, {self.connections} connections, {workers}"

    def median(self, figure: Callable[[Load], float]) -> float:
        return statistics.median(map(figure, self.loads))

    def median_of_told(self, figure: Callable[[Load], float | None]) -> str:
        """Milliseconds, or a dash when no round tells them."""
        told = [seconds for seconds in map(figure, self.loads) if seconds is not None]
        return milliseconds(statistics.median(told)) if told else "-"


def rows_of(loads: Sequence[Load]) -> list[Row]:
    """The loads by front, workers, size and connections, in the order in which each was first measured."""
    rows: dict[tuple[int, int, int, str], list[Load]] = {}
    for one in loads:
        rows.setdefault((one.workers, one.size, one.connections, one.front), []).append(one)
    return [Row(rounds) for rounds in rows.values()]


def ratio(rows: Sequence[Row], of: Row, front: str) -> Ratio | None:
    """One front's rate over that of another under the same load; None when that was not measured."""
    load = (of.workers, of.size, of.connections)
    for other in rows:
        if (other.front, (other.workers, other.size, other.connections)) == (front, load):
            reference = {one.round: one.answers_per_second for one in other.loads}
            shares = [one.answers_per_second / reference[one.round] for one in of.loads if reference.get(one.round)]
            if shares:
                return Ratio(statistics.median(shares), min(shares), max(shares), len(shares))
    return None


def load_table(loads: Sequence[Load], references: Sequence[str]) -> str:
    """A row for each front under each load; ratios to the references only, and to none of itself."""
    rows = rows_of(loads)
    head = ["front", "workers", "size", "conns", "req/s", "MB/s", "p50 ms", "p99 ms", "errors", "CPU s/1000", "RSS MiB"]
    lines = []
    for row in rows:
        shares = [None if row.front == front else ratio(rows, row, front) for front in references]
        lines.append(
            [
                row.front,
                str(row.workers),
                size_name(row.size),
                str(row.connections),
                f"{row.median(lambda one: one.answers_per_second):.0f}",
                f"{row.median(lambda one: one.wrk.bytes_per_second) / 1e6:.1f}",
                row.median_of_told(lambda one: one.p50),
                row.median_of_told(lambda one: one.p99),
                str(row.errors),
                f"{row.median(lambda one: one.cpu_per_1000):.3f}",
                f"{row.median(lambda one: one.resident_mib):.0f}",
                *("" if share is None else str(share) for share in shares),
            ]
        )
    return table([*head, *(f"of {front}" for front in references)], lines)


def kinds_of_errors(loads: Sequence[Load]) -> str:
    wrk = [one.wrk for one in loads]
    return (
        f"{sum(one.bad_statuses for one in wrk)} bad statuses, "
        f"{sum(one.socket_errors for one in wrk)} of sockets, {sum(one.timeouts for one in wrk)} timeouts"
    )


def load_line(one: Load) -> str:
    errors = kinds_of_errors([one]) if one.wrk.errors else "no errors"
    return (
        f"{one.front}, {Row([one]).where}: {one.answers_per_second:.0f} requests/s, "
        f"{one.wrk.bytes_per_second / 1e6:.0f} MB/s, {errors}"
    )


def latency_table(latencies: Sequence[Latency], baseline: str) -> str:
    base = next(one for one in latencies if one.front == baseline)
    rows = [
        [
            one.front,
            str(one.requests),
            str(one.errors),
            milliseconds(one.p50),
            milliseconds(one.p99),
            milliseconds(one.p50 - base.p50),
            milliseconds(one.p99 - base.p99),
            milliseconds(one.lag_p99),
        ]
        for one in latencies
    ]
    head = ["front", "requests", "errors", "p50 ms", "p99 ms", "p50 added", "p99 added", "client lag p99"]
    return table(head, rows)


def transfer_table(transfers: Sequence[Transfer]) -> str:
    rows = [
        [one.front, one.direction, size_name(one.size), f"{one.mb_per_second:.0f}", f"{one.growth_mib:+.1f}"]
        for one in transfers
    ]
    return table(["front", "way", "size", "MB/s", "RSS growth MiB"], rows)


def sales_table(sales: Sequence[Sales]) -> str:
    rows = [
        [
            f"{one.buyers} buyer{'s' * (one.buyers != 'one')}",
            str(one.threads),
            str(one.purchases),
            f"{one.per_second:.0f}",
            milliseconds(one.p50),
            milliseconds(one.p99),
        ]
        for one in sales
    ]
    return table(["purchases by", "threads", "count", "per second", "p50 ms", "p99 ms"], rows)


def ratio_findings(loads: Sequence[Load]) -> list[Finding]:
    """What the goals of throughput say, as far as their cells and fronts were measured."""
    rows = rows_of(loads)
    findings = []
    for goal in RATIO_GOALS:
        for row in rows:
            if (row.front, row.size) != (goal.front, goal.size) or not is_goal(
                workers=row.workers, size=row.size, connections=row.connections
            ):
                continue
            share = ratio(rows, row, goal.reference)
            if share is not None:
                text = f"{row.front}: {share} of {goal.reference} at {row.where} (goal: at least {goal.at_least})"
                findings.append(Finding(text, share.median >= goal.at_least))
    return findings


def error_findings(loads: Sequence[Load], *, fronts: Sequence[str]) -> list[Finding]:
    """Whether these fronts answered every request: one line for all loads with many connections, one for each other
    load with errors."""
    rows = [row for row in rows_of(loads) if row.front in fronts]
    findings = []
    for front in fronts:
        crowded = [row for row in rows if row.front == front and row.connections >= MANY_CONNECTIONS]
        if crowded:
            errors, requests = sum(row.errors for row in crowded), sum(row.requests for row in crowded)
            text = f"{front}: {errors} errors in {requests} requests at {MANY_CONNECTIONS} connections (goal: none)"
            findings.append(Finding(text, not errors))
    for row in rows:
        if row.errors:
            findings.append(Finding(f"{row.front}: {kinds_of_errors(row.loads)} at {row.where} (goal: none)", False))
    return findings


def latency_findings(latencies: Sequence[Latency], *, front: str, baseline: str) -> list[Finding]:
    base = next(one for one in latencies if one.front == baseline)
    ours = next(one for one in latencies if one.front == front)
    p50, p99 = ours.p50 - base.p50, ours.p99 - base.p99
    return [
        Finding(
            f"{front}: p50 {milliseconds(p50)} ms, p99 {milliseconds(p99)} ms added at {ours.rate} requests/s "
            f"(goal: under {milliseconds(ADDED_P50_GOAL)} and {milliseconds(ADDED_P99_GOAL)}), "
            f"{ours.errors} errors",
            p50 < ADDED_P50_GOAL and p99 < ADDED_P99_GOAL and not ours.errors,
        )
    ]


def transfer_findings(transfers: Sequence[Transfer], *, front: str, reference: str) -> list[Finding]:
    findings = []
    for one in transfers:
        if one.front != front:
            continue
        other = next(t for t in transfers if (t.front, t.direction) == (reference, one.direction))
        share = one.mb_per_second / other.mb_per_second
        findings.append(
            Finding(
                f"{size_name(one.size)} {one.direction}: {share:.2f} of {reference}'s rate (goal: at least "
                f"{RATE_GOAL}), memory {one.growth_mib:+.1f} MiB (goal: under {GROWTH_GOAL_MIB:.0f})",
                share >= RATE_GOAL and one.growth_mib < GROWTH_GOAL_MIB,
            )
        )
    return findings


def warm_table(measured: Sequence[Warm]) -> str:
    """The share is that of the fewest active tokens among as many stored ones, measured in turns with them."""
    least: dict[int, Warm] = {}
    for one in measured:
        if one.stored not in least or one.active < least[one.stored].active:
            least[one.stored] = one
    rows = [
        [
            str(one.stored),
            str(one.active),
            f"{one.requests_per_second:.0f}",
            f"{one.requests_per_second / least[one.stored].requests_per_second:.3f}",
            milliseconds(one.p50),
            milliseconds(one.p99),
            str(one.errors),
        ]
        for one in measured
    ]
    return table(["tokens stored", "active", "req/s", "of the fewest", "p50 ms", "p99 ms", "errors"], rows)


def cold_table(measured: Sequence[Cold]) -> str:
    rows = []
    for one in measured:
        rate = "-"
        if one.requests_per_second is not None:
            rate = f"{one.requests_per_second:.0f} ({one.least:.0f}-{one.most:.0f})"
        lookup = one.lookup
        rows.append(
            [
                str(lookup.tokens),
                rate,
                str(one.errors),
                str(lookup.statements),
                milliseconds(lookup.sql_p50),
                milliseconds(lookup.sql_p99),
                milliseconds(lookup.call_p50),
            ]
        )
    head = ["tokens stored", "misses/s", "errors", "statements", "SQL p50 ms", "SQL p99 ms", "lookup p50 ms"]
    return table(head, rows)


def footprint_table(measured: Sequence[Footprint]) -> str:
    kinds = sorted({kind for one in measured for kind in one.keys})
    rows = [
        [
            one.kind,
            f"{one.used:.0f}",
            *(f"{one.keys[kind]:.0f}" if kind in one.keys else "" for kind in kinds),
            f"{one.window_requests}",
            f"{one.bytes_per_request:.1f}",
            str(one.errors),
        ]
        for one in measured
    ]
    head = ["bytes of Redis a token", "used_memory", *kinds, "requests in window", "bytes each", "errors"]
    return table(head, rows)


def growth_findings(growth: Growth) -> list[Finding]:
    counts = [one.errors for one in growth.warm] + [one.errors for one in growth.cold]
    errors = sum(counts) + sum(one.errors for one in growth.footprints)
    return [Finding(f"{errors} errors with many tokens (goal: none)", not errors)]


def history_findings(history: History) -> list[Finding]:
    text = (
        f"first page of {history.transfers} transfers in {milliseconds(history.page_seconds)} ms of PostgreSQL "
        f"(goal: under {milliseconds(FIRST_PAGE_GOAL)})"
    )
    return [Finding(text, history.page_seconds < FIRST_PAGE_GOAL)]


def verdict(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{'met   ' if finding.met else 'MISSED'}  {finding.text}" for finding in findings)

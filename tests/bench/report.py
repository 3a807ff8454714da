"""The figures as text, and what they say about the goals."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.latency import Latency
from tests.bench.load import Load
from tests.bench.purchases import History, Sales
from tests.bench.transfer import Transfer

RATIO_GOAL = 0.25
ADDED_P50_GOAL = 0.002
ADDED_P99_GOAL = 0.010
GROWTH_GOAL_MIB = 20.0
RATE_GOAL = 0.9
FIRST_PAGE_GOAL = 0.020


@dataclass(frozen=True, slots=True)
class Finding:
    text: str
    met: bool


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the first is text, the others are figures."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def size_name(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size} B"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def find_reference(loads: Sequence[Load], of: Load, front: str) -> Load | None:
    for candidate in loads:
        if (candidate.front, candidate.size, candidate.connections) == (front, of.size, of.connections):
            return candidate
    return None


def ratio(loads: Sequence[Load], of: Load, front: str) -> float | None:
    """Requests per second of one load over those of a front under the same load."""
    reference = find_reference(loads, of, front)
    if reference is None or not reference.wrk.requests_per_second:
        return None
    return of.wrk.requests_per_second / reference.wrk.requests_per_second


def load_table(loads: Sequence[Load], reference: str) -> str:
    head = ["front", "size", "conns", "req/s", "MB/s", "p50 ms", "p99 ms", "errors", "CPU s/1000", "RSS MiB"]
    rows = []
    for one in loads:
        share = ratio(loads, one, reference)
        rows.append(
            [
                one.front,
                size_name(one.size),
                str(one.connections),
                f"{one.wrk.requests_per_second:.0f}",
                f"{one.wrk.bytes_per_second / 1e6:.1f}",
                milliseconds(one.wrk.p50),
                milliseconds(one.wrk.p99),
                str(one.errors),
                f"{one.cpu_per_1000:.3f}",
                f"{one.resident_mib:.0f}",
                "" if share is None else f"{share:.3f}",
            ]
        )
    return table([*head, f"of {reference}"], rows)


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


def load_findings(loads: Sequence[Load], *, front: str, reference: str, size: int) -> list[Finding]:
    findings = []
    for one in loads:
        if one.front != front:
            continue
        share = ratio(loads, one, reference)
        if one.size == size and one.connections == 32 and share is not None:
            text = f"{share:.3f} of {reference} at 32 connections (goal: at least {RATIO_GOAL})"
            findings.append(Finding(text, share >= RATIO_GOAL))
        if one.errors:
            text = f"{one.errors} errors at {one.connections} connections, {size_name(one.size)} (goal: none)"
            findings.append(Finding(text, False))
    return findings


def latency_findings(latencies: Sequence[Latency], *, front: str, baseline: str) -> list[Finding]:
    base = next(one for one in latencies if one.front == baseline)
    ours = next(one for one in latencies if one.front == front)
    p50, p99 = ours.p50 - base.p50, ours.p99 - base.p99
    return [
        Finding(
            f"p50 {milliseconds(p50)} ms, p99 {milliseconds(p99)} ms added at {ours.rate} requests/s "
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


def history_findings(history: History) -> list[Finding]:
    text = (
        f"first page of {history.transfers} transfers in {milliseconds(history.page_seconds)} ms of PostgreSQL "
        f"(goal: under {milliseconds(FIRST_PAGE_GOAL)})"
    )
    return [Finding(text, history.page_seconds < FIRST_PAGE_GOAL)]


def verdict(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{'met   ' if finding.met else 'MISSED'}  {finding.text}" for finding in findings)

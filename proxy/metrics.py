"""Figures of the gateway for Prometheus, gathered in plain integers and handed over once a second.

A counter of the client library costs a lock and, with several processes, a write to a mapped file; per request
that would be a tenth of the work. No label carries anything a caller chooses.
"""

from __future__ import annotations

from bisect import bisect_left
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from proxy.breaker import CLOSED, HALF_OPEN, OPEN

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.streams import Exchange

_STATES = {CLOSED: 0, HALF_OPEN: 1, OPEN: 2}
_OVERHEAD_BUCKETS = (0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

REQUESTS = Counter(
    "zenzefi_proxy_requests_total", "Requests and WebSockets to the gateway by how they ended", ["outcome", "kind"]
)
REFUSALS = Counter("zenzefi_proxy_refusals_total", "Answers of the gateway's own by their code", ["code"])
BYTES = Counter("zenzefi_proxy_bytes_total", "Bytes of bodies relayed", ["direction"])
VALIDATIONS = Counter("zenzefi_proxy_validations_total", "Decisions by where they were made", ["layer"])
FIRST_BYTE = Histogram(
    "zenzefi_proxy_first_byte_seconds", "From a request's arrival to the upstream's answer", buckets=_BUCKETS
)
DURATION = Histogram("zenzefi_proxy_duration_seconds", "From a request's arrival to its end", buckets=_BUCKETS)
OVERHEAD = Histogram(
    "zenzefi_proxy_overhead_seconds",
    "From a request's arrival to the answer's head, without the wait for the upstream",
    buckets=_OVERHEAD_BUCKETS,
)
OPEN_STREAMS = Gauge(
    "zenzefi_proxy_open_streams", "What is being relayed by its kind", ["kind"], multiprocess_mode="livesum"
)
UPSTREAM_FAILURES = Counter(
    "zenzefi_proxy_upstream_failures_total", "Failures of a server as its circuit counts them", ["target"]
)
OPEN_EXCHANGES = Gauge(
    "zenzefi_proxy_open_exchanges", "Requests and WebSockets being relayed", multiprocess_mode="livesum"
)
UPSTREAM_STATE = Gauge(
    "zenzefi_proxy_upstream_state",
    "Circuit of a server as the worst worker sees it: 0 closed, 1 half-open, 2 open",
    ["target"],
    multiprocess_mode="livemax",
)
UPSTREAM_IN_FLIGHT = Gauge(
    "zenzefi_proxy_upstream_in_flight", "Exchanges given to a server", ["target"], multiprocess_mode="livesum"
)
REDIS_UP = Gauge("zenzefi_proxy_redis_up", "Workers connected to Redis", multiprocess_mode="livesum")


class _Durations:
    """Observations of one histogram, by bucket. Who observes adds to ``counts`` and ``sum``: a call would cost more."""

    def __init__(self, histogram: Histogram, buckets: tuple[float, ...] = _BUCKETS) -> None:
        self._histogram = histogram
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def flush(self) -> None:
        """Hand over. The library has no call for many observations at once, so its cells are added to directly."""
        if not any(self.counts):
            return
        for cell, count in zip(self._histogram._buckets, self.counts, strict=True):
            if count:
                cell.inc(count)
        self._histogram._sum.inc(self.sum)
        self.counts = [0] * len(self.counts)
        self.sum = 0.0


class Metrics:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._outcomes: dict[str, int] = {}
        self._outcomes_of_websockets: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._bytes = {"in": 0, "out": 0}
        self._reported = dict(gateway.validator.answered)
        self._targets: set[str] = set()
        self._first_byte = _Durations(FIRST_BYTE)
        self._duration = _Durations(DURATION)
        self._overhead = _Durations(OVERHEAD, _OVERHEAD_BUCKETS)

    def refused(self, code: str) -> None:
        """An answer of our own is sent, before or after the decision."""
        self._refusals[code] = self._refusals.get(code, 0) + 1

    def answered(self, outcome: str, *, websocket: bool = False) -> None:
        """A request has ended that was not relayed."""
        outcomes = self._outcomes_of_websockets if websocket else self._outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def relayed(
        self, outcome: str, exchange: Exchange, first_byte: float, started: float, overhead: float = 0.0
    ) -> None:
        """An exchange has ended. Times are on the monotonic clock, ``overhead`` seconds; 0 where there is none."""
        outcomes = self._outcomes_of_websockets if exchange.is_websocket else self._outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        self._bytes["in"] += exchange.bytes_in
        self._bytes["out"] += exchange.bytes_out
        if first_byte:
            seconds = first_byte - started
            self._first_byte.counts[bisect_left(_BUCKETS, seconds)] += 1
            self._first_byte.sum += seconds
        if overhead:
            self._overhead.counts[bisect_left(_OVERHEAD_BUCKETS, overhead)] += 1
            self._overhead.sum += overhead
        seconds = monotonic() - started
        self._duration.counts[bisect_left(_BUCKETS, seconds)] += 1
        self._duration.sum += seconds

    def flush(self) -> None:
        for kind, outcomes in (("http", self._outcomes), ("websocket", self._outcomes_of_websockets)):
            for outcome, count in outcomes.items():
                REQUESTS.labels(outcome, kind).inc(count)
            outcomes.clear()
        for code, count in self._refusals.items():
            REFUSALS.labels(code).inc(count)
        self._refusals.clear()
        for direction, count in self._bytes.items():
            BYTES.labels(direction).inc(count)
            self._bytes[direction] = 0
        for layer, total in self._gateway.validator.answered.items():
            VALIDATIONS.labels(layer).inc(total - self._reported[layer])
            self._reported[layer] = total
        self._first_byte.flush()
        self._duration.flush()
        self._overhead.flush()
        self._flush_upstreams()
        self._flush_open()
        REDIS_UP.set(int(self._gateway.link.up))

    def _flush_open(self) -> None:
        kinds = {"http": 0, "event_stream": 0, "websocket": 0}
        for exchange in self._gateway.registry:
            kinds["websocket" if exchange.is_websocket else "event_stream" if exchange.is_event_stream else "http"] += 1
        for kind, count in kinds.items():
            OPEN_STREAMS.labels(kind).set(count)
        OPEN_EXCHANGES.set(sum(kinds.values()))

    def _flush_upstreams(self) -> None:
        failures = self._gateway.upstream.failures
        for name, count in failures.items():
            UPSTREAM_FAILURES.labels(name).inc(count)
        failures.clear()
        targets = self._gateway.upstream.targets
        names = {target.spec.name for target in targets}
        for name in self._targets - names:
            # A series cannot be taken away in multiprocess mode.
            UPSTREAM_STATE.labels(name).set(0)
            UPSTREAM_IN_FLIGHT.labels(name).set(0)
        self._targets = names
        for target in targets:
            UPSTREAM_STATE.labels(target.spec.name).set(_STATES[target.circuit.state()])
            UPSTREAM_IN_FLIGHT.labels(target.spec.name).set(target.in_flight)

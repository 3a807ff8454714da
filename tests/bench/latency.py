"""Open-loop load: requests leave at a constant rate, whether or not earlier ones have come back."""

import asyncio
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import uvloop

from tests.bench.nginx import SMALL_SIZE, Front
from tests.bench.processes import BenchError

ROUNDS = 3


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from sending to the last byte. `lag_p99` is how late the client itself was to send."""

    front: str
    rate: int
    requests: int
    errors: int
    p50: float
    p99: float
    lag_p99: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Samples:
    seconds: list[float]
    lags: list[float]
    errors: int = 0


async def _constant_rate(front: Front, samples: _Samples, *, rate: int, seconds: float, keep: bool) -> None:
    # uvloop's own clock counts milliseconds.
    now = time.perf_counter
    url = front.url(f"/{SMALL_SIZE}")

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers=front.headers,
        timeout=aiohttp.ClientTimeout(total=30),
        trust_env=False,
    ) as session:

        async def one(due: float) -> None:
            sent = now()
            try:
                async with session.get(url) as answer:
                    body = await answer.read()
                    good = answer.status == 200 and len(body) == SMALL_SIZE
            except (aiohttp.ClientError, TimeoutError):
                good = False
            if keep:
                samples.seconds.append(now() - sent)
                samples.lags.append(sent - due)
                samples.errors += not good

        start = now()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                due = start + number / rate
                delay = due - now()
                if delay > 0:
                    await asyncio.sleep(delay)
                tasks.create_task(one(due))


async def _measure(fronts: Sequence[Front], *, rate: int, seconds: float) -> list[Latency]:
    collected = {front.name: _Samples([], []) for front in fronts}
    for front in fronts:
        await _constant_rate(front, collected[front.name], rate=rate, seconds=1, keep=False)
    # In turns, so that what else the machine does meets all of them alike.
    for _ in range(ROUNDS):
        for front in fronts:
            gc.collect()
            samples = collected[front.name]
            await _constant_rate(front, samples, rate=rate, seconds=seconds / ROUNDS, keep=True)
    return [
        Latency(
            front=name,
            rate=rate,
            requests=len(samples.seconds),
            errors=samples.errors,
            p50=percentile(samples.seconds, 50),
            p99=percentile(samples.seconds, 99),
            lag_p99=percentile(samples.lags, 99),
        )
        for name, samples in collected.items()
    ]


def latencies(fronts: Sequence[Front], *, rate: int, seconds: float) -> list[Latency]:
    """Latency of each front at `rate` requests per second; seconds are per front."""
    if rate * seconds < 100 * ROUNDS:
        raise BenchError("too few requests for a 99th percentile: more seconds or a higher rate are needed.")
    gc.freeze()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(fronts, rate=rate, seconds=seconds))
    finally:
        gc.enable()
        gc.unfreeze()

"""Cost as work grows: the gateway with few and with many tokens, what a miss costs, and Redis memory for each token."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.bench.gateway import gateway
from tests.bench.growth_rows import Filled, Known, Lookup, fill
from tests.bench.load import WrkResult, wrk
from tests.bench.nginx import SMALL_SIZE, Front
from tests.bench.processes import BenchError
from tokens.secrets import digest
from zenzefi.runtime import embedded

CONNECTIONS = 32
ROUNDS = 3
SCRIPT = Path(__file__).with_name("tokens.lua")
#: Tokens that can be used where the largest number of active ones needs no more: enough to see what a miss costs.
MISSES = 10_000
#: Loads of misses for each number of stored tokens.
MISS_LOADS = 4
#: Of the tokens whose memory is measured, those whose keys are looked at.
FOOTPRINT_SAMPLE = 200
#: Tokens whose window is filled, and the requests that are wanted in each.
WINDOW_TOKENS = 10
WINDOW_REQUESTS = 1000
WINDOW_LOADS = 5
METERING_WITHIN = 30


@dataclass(frozen=True, slots=True)
class Warm:
    """Every request with the next of some tokens, all of them in Redis: medians of the rounds, seconds."""

    stored: int
    active: int
    requests_per_second: float
    p50: float
    p99: float
    errors: int


@dataclass(frozen=True, slots=True)
class Cold:
    """Every request with a token that Redis does not know: the median of some loads and its spread.

    None of them where there were too few such tokens for a whole load.
    """

    lookup: Lookup
    loads: int
    requests_per_second: float | None
    least: float | None
    most: float | None
    errors: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of Redis for each active token of a kind, after a few requests.

    ``used`` is the growth of ``used_memory``, ``keys`` the mean of MEMORY USAGE by kind of key; ``window`` is the key
    with the moments of ``window_requests`` requests.
    """

    kind: str
    tokens: int
    used: float
    keys: dict[str, float]
    window_requests: int
    window: int
    errors: int

    @property
    def bytes_per_request(self) -> float:
        return self.window / self.window_requests


@dataclass(slots=True)
class Growth:
    warm: list[Warm] = field(default_factory=list)
    cold: list[Cold] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimated_seconds(stored: Sequence[int], active: Sequence[int], seconds: int) -> float:
    """About how long :func:`growth` takes on a machine of the size it was written on."""
    warm = sum(1 for total in stored for number in active if number <= total) * (ROUNDS + 1)
    misses = sum(min(MISS_LOADS, math.ceil(total / 1000)) for total in stored)
    return 75 + max(stored) / 20_000 + (warm + misses) * (seconds + 0.3)


def growth(
    directory: Path,
    *,
    target: str,
    stored: Sequence[int],
    active: Sequence[int],
    seconds: int,
    footprints: int,
    say: Callable[[str], None] = lambda _: None,
) -> Growth:
    """Measure with each number of stored tokens, smaller ones first; each load of so many seconds.

    ``footprints``: tokens of each kind whose memory is measured.
    """
    done = Growth()
    # Nothing leaves the cache while it is measured.
    extra = {"GATEWAY_CACHE_SECONDS": "3600"}
    var_dir = directory / "gateway" / "var"
    with (
        gateway(directory / "gateway", target=target, extra=extra) as running,
        redis.Redis.from_url(embedded.redis_url(var_dir)) as client,
    ):
        tokens = Tokens(directory, running.front, seconds)
        for total in sorted(stored):
            filled = fill(var_dir, total=total, known=max(max(active) - len(tokens.cached), MISSES))
            present = filled.lookup.tokens
            say(f"  {present} tokens stored, after {filled.seconds:.0f} s")
            done.cold.append(_cold(tokens, client, filled))
            done.warm += _warm(tokens, present, active)
            for one in done.warm:
                if one.stored == present:
                    say(f"  {present} stored, {one.active} active: {one.requests_per_second:.0f} requests/s")
            if not done.footprints:
                # While Redis is nearly empty: the tables of a full one grow by leaps.
                done.footprints = _footprints(tokens, client, var_dir, present, footprints)
    return done


class Tokens:
    """Loads whose requests walk through many tokens, and those that Redis knows by now."""

    def __init__(self, directory: Path, front: Front, seconds: int) -> None:
        self._file = directory / "tokens.txt"
        self._front = front
        self._seconds = seconds
        self.cached: list[str] = []

    def load(self, secrets: Sequence[str], *, skip: int = 0, seconds: int | None = None) -> WrkResult:
        self._file.write_text("".join(f"{secret}\n" for secret in secrets))
        return wrk(
            self._front.url(f"/{SMALL_SIZE}"),
            connections=CONNECTIONS,
            seconds=seconds or self._seconds,
            headers={name: value for name, value in self._front.headers.items() if name != "X-Access-Token"},
            script=SCRIPT,
            arguments=[str(self._file), str(skip)],
        )

    def walk(
        self, secrets: Sequence[str], *, loads: int, seconds: int | None = None
    ) -> Iterator[tuple[WrkResult, int]]:
        """So many loads, less when each token was used; with each how many are used by then.

        Where one load ends the next begins, less the requests that the end cut off.
        """
        used = 0
        for _ in range(loads):
            result = self.load(secrets, skip=used, seconds=seconds)
            if result.requests <= CONNECTIONS:
                raise BenchError("the gateway hardly answers to new tokens")
            used += result.requests - CONNECTIONS
            yield result, used
            if used >= len(secrets):
                return


def _cold(tokens: Tokens, client: Any, filled: Filled) -> Cold:
    """Use what is new, one token a request; what is left of it then goes to Redis without the gateway."""
    known = filled.known
    results = list(tokens.walk([one.secret for one in known], loads=MISS_LOADS)) if known else []
    rates = [result.requests_per_second for result, used in results if used + 2 * CONNECTIONS <= len(known)]
    used = results[-1][1] if results else 0
    if used < len(known):
        remember(client, known[used - 1], known[used:])
    tokens.cached += [one.secret for one in known]
    return Cold(
        lookup=filled.lookup,
        loads=len(rates),
        requests_per_second=statistics.median(rates) if rates else None,
        least=min(rates, default=None),
        most=max(rates, default=None),
        errors=sum(result.errors for result, _ in results),
    )


def remember(client: Any, example: Known, others: Sequence[Known]) -> None:
    """Let Redis know tokens as it knows one that was bought like them."""
    [name] = keys_by_kind(client, [example])["cred"]
    prefix = name.removesuffix(digest(example.secret).encode())
    fields, lifetime = client.hgetall(name), client.pttl(name)
    with client.pipeline(transaction=False) as pipe:
        for number, one in enumerate(others, 1):
            own = prefix + digest(one.secret).encode()
            pipe.hset(own, mapping={**fields, b"t": one.token_id, b"u": one.owner_id})
            pipe.pexpire(own, lifetime)
            if number % 1000 == 0:
                pipe.execute()
        pipe.execute()


def _warm(tokens: Tokens, stored: int, numbers: Sequence[int]) -> list[Warm]:
    """All numbers of active tokens that there are in turn, several rounds."""
    wanted = sorted({min(number, len(tokens.cached)) for number in numbers if number <= stored})
    results: dict[int, list[WrkResult]] = {number: [] for number in wanted}
    skip = dict.fromkeys(wanted, 0)
    # The first round does not count: most tokens are met for the first time in it, and some not at all.
    for round in range(ROUNDS + 1):
        for number in wanted:
            result = tokens.load(tokens.cached[:number], skip=skip[number])
            skip[number] = (skip[number] + result.requests) % number
            if round:
                results[number].append(result)
    return [
        Warm(
            stored=stored,
            active=number,
            requests_per_second=statistics.median(result.requests_per_second for result in rounds),
            p50=statistics.median(result.p50 for result in rounds),
            p99=statistics.median(result.p99 for result in rounds),
            errors=sum(result.errors for result in rounds),
        )
        for number, rounds in results.items()
    ]


# --- memory


def _footprints(tokens: Tokens, client: Any, var_dir: Path, stored: int, count: int) -> list[Footprint]:
    """So many of both kinds, on top of the tokens stored."""
    filled = fill(var_dir, total=stored + 2 * count, known=2 * count, limited=count)
    # What earlier loads left in windows would expire meanwhile.
    for name in list(client.scan_iter(match="*gw:rate:*", count=10_000)):
        client.delete(name)
    return [
        _footprint("without limits", tokens, client, filled.known[:count]),
        _footprint("with every limit", tokens, client, filled.known[count:]),
    ]


def _footprint(kind: str, tokens: Tokens, client: Any, known: Sequence[Known]) -> Footprint:
    secrets = [one.secret for one in known]
    before = _settled_memory(client)
    results = [result for result, _ in tokens.walk(secrets, loads=len(known), seconds=1)]
    used = _settled_memory(client) - before
    by_kind = keys_by_kind(client, known[:FOOTPRINT_SAMPLE])
    keys = {
        name: sum(client.memory_usage(key, samples=0) for key in of_kind) / min(len(known), FOOTPRINT_SAMPLE)
        for name, of_kind in sorted(by_kind.items())
    }
    windows: list[bytes] = []
    for _ in range(WINDOW_LOADS):
        results.append(tokens.load(secrets[:WINDOW_TOKENS], seconds=2))
        windows = keys_by_kind(client, known[:WINDOW_TOKENS])["rate"]
        if min(client.llen(name) for name in windows) >= WINDOW_REQUESTS:
            break
    return Footprint(
        kind=kind,
        tokens=len(known),
        used=used / len(known),
        keys=keys,
        window_requests=round(statistics.mean(client.llen(name) for name in windows)),
        window=round(statistics.mean(client.memory_usage(name, samples=0) for name in windows)),
        errors=sum(result.errors for result in results),
    )


def _settled_memory(client: Any) -> int:
    """``used_memory`` once the counts of what has passed have arrived in Redis and left it for PostgreSQL."""
    time.sleep(2)
    deadline = time.monotonic() + METERING_WITHIN
    while any(client.xlen(name) for name in client.scan_iter(match="*gw:meter", _type="stream")):
        if time.monotonic() > deadline:
            raise BenchError("the counts of the gateway do not reach PostgreSQL")
        time.sleep(0.2)
    return int(client.info("memory")["used_memory"])


def keys_by_kind(client: Any, known: Sequence[Known]) -> dict[str, list[bytes]]:
    """The gateway's keys that name one of these tokens, by id or digest; the kind is what follows the prefix."""
    named = {one.token_id for one in known} | {digest(one.secret) for one in known}
    found: dict[str, list[bytes]] = {}
    for name in client.scan_iter(match="*gw:*", count=10_000):
        kind, *parts = name.decode().partition("gw:")[2].split(":")
        if parts and parts[0] in named:
            found.setdefault(kind, []).append(name)
    return found

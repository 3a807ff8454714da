"""The table of loads: which cells it has, how long each takes, and every front in turn."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.load import LARGE, TIMEOUT, Load, load
from tests.bench.nginx import SMALL_SIZE, Front

#: Where the goals of throughput are judged: several rounds each, with one worker.
GOAL_SIZES = (SMALL_SIZE, 10_000_000)
GOAL_CONNECTIONS = 32
#: Large answers to many connections: each connection shall get two of them from a machine that moves so many bytes a
#: second, but no load takes longer than this.
MODEST_RATE = 800e6
LONGEST_SECONDS = 25


@dataclass(frozen=True, slots=True)
class Cell:
    """One load, which each front gets in each round, of so many seconds."""

    workers: int
    size: int
    connections: int
    rounds: int
    seconds: int

    @property
    def timeout(self) -> int:
        """Seconds. Within the load, or wrk would never count one; large answers to many take about all of it."""
        return TIMEOUT if self.size < LARGE else self.seconds


def is_goal(*, workers: int, size: int, connections: int) -> bool:
    """Whether a goal of throughput hangs on this cell."""
    return workers == 1 and size in GOAL_SIZES and connections == GOAL_CONNECTIONS


def seconds_of(size: int, connections: int, seconds: int) -> int:
    """How long a load takes that is asked to last some seconds: large answers need time to come at all."""
    wanted = math.ceil(2 * size * connections / MODEST_RATE)
    return max(seconds, min(LONGEST_SECONDS, wanted))


def cells_of(
    workers: int, *, sizes: Sequence[int], connections: Sequence[int], rounds: int, seconds: int
) -> list[Cell]:
    return [
        Cell(
            workers,
            size,
            number,
            rounds if is_goal(workers=workers, size=size, connections=number) else 1,
            seconds_of(size, number, seconds),
        )
        for size in sizes
        for number in connections
    ]


def in_turn(fronts: Sequence[Front], turn: int) -> list[Front]:
    """All of them, each turn beginning with another one: what drifts meets every front alike."""
    first = turn % len(fronts)
    return [*fronts[first:], *fronts[:first]]


def warm(fronts: Sequence[Front]) -> None:
    """A second of load each: what a first request sets up is no part of any cell."""
    for front in fronts:
        load(front, size=SMALL_SIZE, connections=GOAL_CONNECTIONS, seconds=1)


def measure(fronts: Sequence[Front], cells: Sequence[Cell]) -> Iterator[Load]:
    """Measure each cell, all fronts next to each other, and yield each load when it is over."""
    turn = 0
    for cell in cells:
        for round in range(cell.rounds):
            for front in in_turn(fronts, turn):
                yield load(
                    front,
                    size=cell.size,
                    connections=cell.connections,
                    seconds=cell.seconds,
                    workers=cell.workers,
                    round=round,
                    timeout=cell.timeout,
                )
            turn += 1

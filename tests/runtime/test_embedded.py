"""The servers a bare machine gets: where they run, who stops them, and what a kill -9 leaves."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from tests.upstream import wait_until
from zenzefi.runtime import embedded, processes
from zenzefi.runtime.errors import StartError

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from zenzefi.runtime import embedded
lease = embedded.ensure(Path(sys.argv[1]), postgres=True, redis=True)
print("ready", flush=True)
sys.stdin.read()
"""
# Each starts and stops a PostgreSQL or several.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def var_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "var"
    yield path
    for process in running(path):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(embedded.runtime_directory(path), ignore_errors=True)


def running(var_dir: Path) -> list[psutil.Process]:
    lease = embedded.Lease(var_dir.resolve(), fsync=True)
    return lease.postgres.running() + lease.redis.running()


def everything(var_dir: Path) -> list[psutil.Process]:
    found = []
    for process in running(var_dir):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process, *process.children(recursive=True)]
    return found


def kill_everything(var_dir: Path) -> None:
    for process in everything(var_dir):
        # PostgreSQL's own children come and go, and they go when their postmaster does.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def assert_nothing_left(var_dir: Path) -> None:
    assert running(var_dir) == []
    assert not embedded.runtime_directory(var_dir).exists()
    assert not (var_dir / "postgres" / "postmaster.pid").exists()


def ensure(var_dir: Path) -> embedded.Lease:
    return embedded.ensure(var_dir, postgres=True, redis=True)


def write(var_dir: Path, value: str) -> None:
    with psycopg.connect(embedded.database_url(var_dir)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS note (value text)")
        connection.execute("INSERT INTO note VALUES (%s)", [value])
    with redis.Redis.from_url(embedded.redis_url(var_dir)) as client:
        client.set("note", value)


def read(var_dir: Path) -> tuple[list[str], str | None]:
    with psycopg.connect(embedded.database_url(var_dir)) as connection:
        rows = [value for (value,) in connection.execute("SELECT value FROM note ORDER BY value")]
    with redis.Redis.from_url(embedded.redis_url(var_dir), decode_responses=True) as client:
        value = client.get("note")
        assert value is None or isinstance(value, str)
        return rows, value


def holder(var_dir: Path, *prefix: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLDER, str(var_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def leave(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("name", ["with spaces and a ' quote", "länge " + "x" * 90 + "/" + "y" * 90, "plain"])
def test_any_path_serves_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    var_dir = tmp_path / name / "var"
    with ensure(var_dir):
        write(var_dir, "a")
        assert read(var_dir) == (["a"], "a")
        for process in running(var_dir):
            assert [c for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN] == []
    assert_nothing_left(var_dir)


def test_two_data_directories_do_not_meet(tmp_path: Path) -> None:
    with ensure(tmp_path / "one"), ensure(tmp_path / "two"):
        write(tmp_path / "one", "1")
        write(tmp_path / "two", "2")
        assert read(tmp_path / "one") == (["1"], "1")
        assert read(tmp_path / "two") == (["2"], "2")
    assert_nothing_left(tmp_path / "one")
    assert_nothing_left(tmp_path / "two")


def test_text_folds_case_beyond_ascii_and_time_is_utc(var_dir: Path) -> None:
    with ensure(var_dir), psycopg.connect(embedded.database_url(var_dir)) as connection:
        row = connection.execute(
            "SELECT lower('ЖÄ'), current_setting('TimeZone'), current_setting('server_encoding'), "
            "current_setting('fsync'), current_setting('synchronous_commit')"
        ).fetchone()
    assert row == ("жä", "UTC", "UTF8", "on", "on")


def test_servers_stop_with_their_last_holder(var_dir: Path) -> None:
    other = holder(var_dir)
    lease = ensure(var_dir)
    before = [process.pid for process in running(var_dir)]
    leave(other)
    write(var_dir, "still here")
    assert [process.pid for process in running(var_dir)] == before
    lease.release()
    lease.release()
    assert_nothing_left(var_dir)


def test_a_forked_child_does_not_stop_what_its_parent_holds(var_dir: Path) -> None:
    with ensure(var_dir) as lease:
        child = os.fork()
        if child == 0:
            lease.release()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        write(var_dir, "a")
    assert_nothing_left(var_dir)


def test_callers_at_the_same_time_share_one_pair(var_dir: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(var_dir)]
    callers = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for caller in callers:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"
    assert len(running(var_dir)) == 2
    # All leave at once, as one more arrives: it gets servers that serve, whoever stops or starts them.
    for caller in callers:
        assert caller.stdin is not None
        caller.stdin.close()
    with ensure(var_dir):
        write(var_dir, "a")
        for caller in callers:
            assert caller.wait(timeout=120) == 0
            assert caller.stdout is not None
            caller.stdout.close()
        assert read(var_dir) == (["a"], "a")
    assert_nothing_left(var_dir)


def test_after_kill_9_of_everything_the_data_is_there(var_dir: Path) -> None:
    victim = holder(var_dir)
    write(var_dir, "acknowledged")
    victim.kill()
    kill_everything(var_dir)
    victim.communicate()
    with ensure(var_dir):
        assert read(var_dir) == (["acknowledged"], "acknowledged")
    assert_nothing_left(var_dir)


def test_servers_of_a_killed_holder_are_adopted(var_dir: Path) -> None:
    victim = holder(var_dir)
    write(var_dir, "a")
    before = [process.pid for process in running(var_dir)]
    victim.kill()
    victim.communicate()
    with ensure(var_dir):
        assert [process.pid for process in running(var_dir)] == before
        assert read(var_dir) == (["a"], "a")
    assert_nothing_left(var_dir)


def test_processes_that_outlive_a_killed_postmaster_do_not_block_the_start(var_dir: Path) -> None:
    victim = holder(var_dir)
    write(var_dir, "a")
    busy = psycopg.connect(embedded.database_url(var_dir))
    backend = psutil.Process(busy.info.backend_pid)
    # Suspended, it sees neither its postmaster's end nor the request to leave.
    backend.suspend()
    victim.kill()
    running(var_dir)[0].kill()
    victim.communicate()
    with ensure(var_dir):
        assert read(var_dir) == (["a"], "a")
        assert not processes.exists(backend)
    busy.close()
    assert_nothing_left(var_dir)


def test_a_pid_file_that_names_somebody_else_is_not_believed(var_dir: Path) -> None:
    ensure(var_dir).release()
    pid_file = var_dir / "postgres" / "postmaster.pid"
    pid_file.write_text(f"{os.getppid()}\n{var_dir}/postgres\n1\n5432\n/tmp\n\n1 1\nready\n")
    with ensure(var_dir):
        write(var_dir, "a")
    assert_nothing_left(var_dir)


def test_data_removed_under_a_running_server_starts_afresh(var_dir: Path) -> None:
    victim = holder(var_dir)
    write(var_dir, "a")
    old = running(var_dir)
    victim.kill()
    victim.communicate()
    shutil.rmtree(var_dir)
    with ensure(var_dir):
        assert not any(processes.exists(process) for process in old)
        with psycopg.connect(embedded.database_url(var_dir)) as connection:
            assert connection.execute("SELECT to_regclass('note')").fetchone() == (None,)
    assert_nothing_left(var_dir)


def test_an_interrupted_initdb_is_begun_again(var_dir: Path) -> None:
    draft = var_dir / "postgres.new"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    with ensure(var_dir):
        write(var_dir, "a")
    assert not draft.exists()
    assert_nothing_left(var_dir)


def test_revive_starts_what_has_died(var_dir: Path) -> None:
    with ensure(var_dir) as lease:
        write(var_dir, "a")
        kill_everything(var_dir)
        wait_until(lambda: not running(var_dir), what="the end of both servers")
        said: list[str] = []
        lease.revive(said.append)
        # On a slow machine a step that takes long says so in a line of its own.
        assert [line for line in said if line.startswith("Starting")] == ["Starting PostgreSQL", "Starting Redis"]
        assert read(var_dir) == (["a"], "a")
        said.clear()
        lease.revive(said.append)
        assert not said
    assert_nothing_left(var_dir)


def test_a_directory_others_may_enter_is_refused(var_dir: Path) -> None:
    directory = embedded.runtime_directory(var_dir)
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    with pytest.raises(StartError, match="not a private directory"):
        ensure(var_dir)
    assert running(var_dir) == []


def test_a_failing_start_says_why_and_leaves_nothing(var_dir: Path) -> None:
    ensure(var_dir).release()
    (var_dir / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(StartError, match="pg_control"):
        ensure(var_dir)
    assert running(var_dir) == []
    assert not embedded.runtime_directory(var_dir).exists()


# What a container usually has (docker's default), less CAP_SETFCAP, so that no user namespace is to be had,
# as docker's seccomp profile would see to.
CONTAINER = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service"


@pytest.mark.root
@pytest.mark.parametrize(
    ("bounding_set", "owner"),
    [("-setuid", "root"), ("-setfcap", "other"), (CONTAINER, "other")],
    ids=["user namespace", "another account", "another account in a container"],
)
def test_root_runs_it_below_a_private_directory(tmp_path: Path, bounding_set: str, owner: str) -> None:
    private = tmp_path / "only root's"
    private.mkdir(mode=0o700)
    var_dir = private / "var"
    for value in ("first", "second"):
        process = holder(var_dir, "setpriv", "--bounding-set", bounding_set)
        write(var_dir, value)
        leave(process)
        assert_nothing_left(var_dir)
    assert ((var_dir / "postgres").stat().st_uid == 0) == (owner == "root")
    assert private.stat().st_mode & 0o777 == 0o700
    # What one way has made the other can use: the machine may have changed.
    with ensure(var_dir):
        assert read(var_dir) == (["first", "second"], "second")
    assert_nothing_left(var_dir)


@pytest.mark.root
def test_an_ordinary_user_runs_it() -> None:
    nobody = pwd.getpwnam("nobody")
    prefix = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    probe = [*prefix, sys.executable, "-c", "import zenzefi.runtime.embedded"]
    if subprocess.run(probe, cwd=ROOT, capture_output=True, check=False).returncode != 0:
        pytest.skip("an ordinary user cannot reach this checkout")
    with tempfile.TemporaryDirectory(prefix="zen ") as name:
        os.chown(name, nobody.pw_uid, nobody.pw_gid)
        var_dir = Path(name, "var")
        directory = Path(str(embedded.runtime_directory(var_dir)).replace("-0-", f"-{nobody.pw_uid}-"))
        process = holder(var_dir, *prefix)
        servers = [p for p in processes.named("postgres") if str(var_dir / "postgres") in processes.command_line(p)]
        assert [p.uids().real for p in servers] == [nobody.pw_uid]
        assert directory.stat().st_mode & 0o777 == 0o700
        leave(process)
        assert not any(processes.exists(p) for p in servers)
        assert not directory.exists()


@pytest.mark.root
def test_data_of_another_user_is_refused(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    prefix = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        (Path(name) / "postgres").mkdir()
        (Path(name) / "log").mkdir()
        (Path(name) / "log").chmod(0o777)
        done = subprocess.run(
            [*prefix, sys.executable, "-c", HOLDER, name], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode != 0
    assert "belongs to another user (id 0)" in done.stderr

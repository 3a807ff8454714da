"""How to start PostgreSQL, which refuses user id 0, whoever we are."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zenzefi.runtime import unprivileged
from zenzefi.runtime.errors import StartError


@dataclass(frozen=True)
class Way:
    """What to put before a command, and to whom its files belong (None: to us)."""

    prefix: tuple[str, ...] = ()
    account: pwd.struct_passwd | None = None

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True)
        self.own(path)

    def own(self, path: Path) -> None:
        if self.account is None:
            return
        os.chown(path, self.account.pw_uid, self.account.pw_gid)
        for folder, names, files in os.walk(path):
            for name in (*names, *files):
                os.chown(Path(folder, name), self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)


def way_to_run(data: Path, probe: Sequence[str | Path], *, among: Sequence[str] = ("namespace", "setuid")) -> Way:
    """Return the first way in which ``probe`` exits with 0 on this machine.

    ``data`` is the data directory, there or not; whom it belongs to decides what is possible.
    Raises StartError with a sentence for the person at the terminal.
    """
    me = os.geteuid()
    owner = data.stat().st_uid if data.exists() else me
    if me != 0:
        if owner != me:
            raise StartError(
                f"{data} belongs to another user (id {owner}): start as that user, or choose another VAR_DIR."
            )
        if _has_name(me):
            return Way()
    if not sys.platform.startswith("linux"):
        raise StartError("PostgreSQL refuses root: start as an ordinary user or set DATABASE_URL.")
    account = _account(owner)
    # initdb looks its user up by number, so even the number shown inside the namespace needs a name.
    if "namespace" in among and owner == me:
        way = Way(_prefix("namespace", account))
        if _succeeds([*way.prefix, *probe]):
            return way
    if "setuid" in among and me == 0:
        way = Way(_prefix("setuid", account), account)
        if _succeeds([*way.prefix, *probe]):
            return way
    raise StartError(
        "PostgreSQL refuses this user, and this machine allows neither a user namespace nor a change of "
        "user: start as an ordinary user that has a name, or set DATABASE_URL."
    )


def _prefix(way: str, account: pwd.struct_passwd) -> tuple[str, ...]:
    return (sys.executable, "-I", unprivileged.__file__, way, str(account.pw_uid), str(account.pw_gid))


def _account(owner: int) -> pwd.struct_passwd:
    """Return the account of ``owner``; for root and for a number without a name, one with few rights."""
    if owner != 0 and _has_name(owner):
        return pwd.getpwuid(owner)
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StartError("This machine has no user 'nobody' to run PostgreSQL as: set DATABASE_URL.")


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _succeeds(command: Sequence[str | Path]) -> bool:
    done = subprocess.run(  # noqa: S603 - our own script and the wheel's own binary
        [os.fspath(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.returncode == 0

"""Exec a command with a user id other than 0, which PostgreSQL insists on.

Run as a script (``python -I unprivileged.py WAY UID GID COMMAND ...``), because the calls below must happen
in a process of one thread that becomes the command. Two ways:

``namespace``
    a user namespace in which this very user has another number. Files stay its own, no other account gains
    access, and private parent directories (``/root``) stay as they are. Containers often forbid it.
``setuid``
    another account of the machine. So that a data directory or a virtual environment below a private
    directory can be reached, the one capability to pass directories is kept across exec
    (capabilities(7), ambient set); nothing is opened up for others.

No way needs a change of permissions of any directory that is not ours.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def enter_namespace(uid: int, gid: int) -> None:
    """Appear as ``uid`` and ``gid`` to ourselves and our children; stay who we are to all others."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER)
    # user_namespaces(7): without CAP_SETGID outside, gid_map is writable only once setgroups is given up.
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{gid} {outer_gid} 1", encoding="ascii")


def become(uid: int, gid: int) -> None:
    """Switch to another account, keeping only the capability to pass private directories if we have it."""
    header = _Header(CAPABILITY_VERSION_3, 0)
    sets = (_Sets * 2)()
    _call("capget", ctypes.byref(header), ctypes.byref(sets))
    # Docker's default set lacks DAC_READ_SEARCH but has the wider DAC_OVERRIDE.
    kept = next((c for c in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if sets[0].permitted & (1 << c)), None)
    _call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if kept is None:
        return
    only = 1 << kept
    sets = (_Sets * 2)(_Sets(only, only, only), _Sets(0, 0, 0))
    _call("capset", ctypes.byref(header), ctypes.byref(sets))
    _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept, 0, 0)


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main(way: str, uid: str, gid: str, *command: str) -> None:
    try:
        {"namespace": enter_namespace, "setuid": become}[way](int(uid), int(gid))
    except OSError as error:
        sys.exit(f"{way}: {error}")
    os.execv(command[0], command)  # noqa: S606 - the whole purpose


if __name__ == "__main__":
    main(*sys.argv[1:])

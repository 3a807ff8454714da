"""Locks between processes of one machine, held by the kernel: a killed holder cannot leave one behind."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from zenzefi.runtime.errors import StartError


def private_directory(path: Path) -> None:
    """Create ``path`` for this user alone, or make sure that it is.

    It lies in the world-writable ``/tmp``, where somebody else could have made it first to reach our sockets.
    Raises StartError then.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise StartError(f"{path} for the sockets cannot be made: {error.strerror}.") from None
    # One look: between two of them whoever leaves just now may remove it.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StartError(f"{path} exists and is not a private directory of this user; look who made it and remove it.")


class FileLock:
    """An ``flock`` on a file in a directory that whoever leaves last removes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self, *, shared: bool = False, block: bool = True) -> bool:
        """Take the lock; False when ``block`` is off and another holder is in the way."""
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        while True:
            try:
                private_directory(self.path.parent)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # the directory went between the two calls: its last user was just leaving
            try:
                fcntl.flock(descriptor, mode if block else mode | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            # The last user removes the file while it holds the lock. Whoever waited for it then holds a lock
            # on a file nobody else can open any more, so it has to begin again.
            if self._is_current(descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def release(self) -> None:
        if self._descriptor is not None:
            # Closing, not LOCK_UN: a forked child that shares the description keeps its share of the lock.
            os.close(self._descriptor)
            self._descriptor = None

    def remove_file(self) -> None:
        """Unlink the file while the lock is held; see ``acquire`` for those who wait for it."""
        assert self._descriptor is not None
        if self._is_current(self._descriptor):
            self.path.unlink()

    def remove(self) -> None:
        """Release, and take the file away, and the directory when nothing else is in it."""
        self.remove_file()
        self.release()
        try:
            self.path.parent.rmdir()
        except OSError:
            pass

    def write(self, text: str) -> None:
        """Leave a note for those who find the lock taken."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def read(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

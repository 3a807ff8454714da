"""Make ``.venv`` and install a requirements file into it, when that has not been done yet.

``python3 zenzefi/runtime/bootstrap.py requirements.txt``, with any Python from 3.11 on and nothing installed:
only the standard library. Safe to run from several shells at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# What a file brings along: whoever installed the first has the others too.
INCLUDES = {
    "requirements.txt": ["requirements.txt"],
    "requirements-dev.txt": ["requirements-dev.txt", "requirements.txt"],
}


def main(requirements: str) -> None:
    venv = ROOT / ".venv"
    venv.mkdir(exist_ok=True)
    with (venv / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another command that installs into .venv")
            fcntl.flock(lock, fcntl.LOCK_EX)
        ensure(venv, requirements)


def ensure(venv: Path, requirements: str) -> None:
    python = venv / "bin" / "python"
    if not _runs(python):
        say(f"Creating .venv with Python {sys.version_info.major}.{sys.version_info.minor}")
        # Not cleared by venv itself: the lock is in there. A broken one may stem from a moved checkout.
        for entry in venv.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        run(
            [sys.executable, "-m", "venv", str(venv)],
            "Python cannot make a virtual environment: its modules venv and ensurepip are needed "
            "(on Debian the package python3-venv).",
        )
    if _stamp(venv, requirements).exists():
        return
    say(f"Installing {requirements} into .venv; the first time this takes a few minutes")
    run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements],
        f"pip could not install {requirements}; its own lines above say why.",
    )
    for name in INCLUDES.get(requirements, [requirements]):
        for old in venv.glob(f"installed-{name}-*"):
            old.unlink()
        _stamp(venv, name).touch()


def _stamp(venv: Path, requirements: str) -> Path:
    """Return the file that exists when exactly this content has been installed."""
    digest = hashlib.sha256()
    for name in INCLUDES.get(requirements, [requirements]):
        digest.update((ROOT / name).read_bytes())
    return venv / f"installed-{requirements}-{digest.hexdigest()[:16]}"


def _runs(python: Path) -> bool:
    if not python.exists():
        return False
    probe = [str(python), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0  # noqa: S603


def run(command: list[str], sentence: str) -> None:
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:  # noqa: S603
        sys.exit(sentence)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command line


if __name__ == "__main__":
    os.umask(0o022)
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)

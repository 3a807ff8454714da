"""The nginx of edge mode as ``deploy/nginx`` has it: only addresses, accounts and folders are a caller's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "deploy" / "nginx"
# Debian installs nginx where an ordinary user's PATH does not look.
SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin"


def nginx_path() -> str | None:
    """Return where nginx is, if it is."""
    return shutil.which("nginx") or shutil.which("nginx", path=SYSTEM_FOLDERS)


def put_together(directory: Path, *, listen: str, gateway: str, workers: int, log_level: str) -> None:
    """Copy what ships into a folder. ``listen`` and ``gateway`` are ``host:port``.

    What ``manage.py edge_config`` writes is still to come, into the folder ``zenzefi`` in it.
    """
    shutil.copytree(SHIPPED, directory, dirs_exist_ok=True)
    # Run as root, nginx gives its workers to an account that may not enter a private folder.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"    {name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    _replace(
        directory / "nginx.conf",
        ("user www-data;", f"{user}\ndaemon off;"),
        ("worker_processes auto;", f"worker_processes {workers};"),
        ("pid /run/nginx.pid;", f"pid {directory}/pid;"),
        ("error_log /var/log/nginx/error.log warn;", f"error_log {directory}/error.log {log_level};"),
        ("listen 80 backlog=2048;", f"listen {listen} backlog=2048;"),
        ("http {\n", f"http {{\n{temporary}"),
    )
    _replace(directory / "zenzefi" / "http.conf", ("server 127.0.0.1:8000 ", f"server {gateway} "))


def _replace(path: Path, *changes: tuple[str, str]) -> None:
    """Raises :class:`ValueError` when what ships does not have exactly one of what is to be replaced."""
    text = path.read_text()
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"{path.name} has not one {old!r}")
        text = text.replace(old, new)
    path.write_text(text)

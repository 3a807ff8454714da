"""``manage.py``: finds PostgreSQL and Redis running, or starts them, before Django connects."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from zenzefi.runtime.errors import StartError

# These talk to no server; everything else gets one. ``up`` looks at the port before it starts any.
WITHOUT_SERVERS = {
    "help",
    "version",
    "check",
    "collectstatic",
    "compilemessages",
    "diffsettings",
    "findstatic",
    "makemessages",
    "spectacular",
    "startapp",
    "startproject",
    "up",
}


def main(arguments: list[str]) -> None:
    """Run one management command. A problem of the start ends it with one sentence."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")
    from zenzefi.settings.env import ConfigurationError

    try:
        if _needs_servers(arguments):
            _ensure_servers()
        from django.core.management import execute_from_command_line

        execute_from_command_line(arguments)
    except (StartError, ConfigurationError) as error:
        sys.exit(f"{arguments[0]}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _needs_servers(arguments: list[str]) -> bool:
    if len(arguments) < 2 or arguments[1].startswith("-") or {"-h", "--help"} & set(arguments):
        return False
    # The reloader's child runs below a runserver that holds a lease already.
    return arguments[1] not in WITHOUT_SERVERS and os.environ.get("RUN_MAIN") != "true"


def _ensure_servers() -> None:
    from zenzefi.runtime import servers

    if not any(servers.ours()):
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _leave)
    # Its atexit hook gives the lease back, whatever the command does.
    servers.ensure(lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201 - a command line


def _leave(number: int, frame: FrameType | None) -> None:
    """End through Python's own exit, so that the lease is given back."""
    sys.exit(128 + number)

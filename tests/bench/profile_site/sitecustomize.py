"""Imported by every interpreter that has this folder on its path: profiles what gunicorn forks."""

import cProfile
import os
import signal
import sys

_directory = os.environ.get("BENCH_PROFILE_DIRECTORY")


def _profile_on_signal() -> None:
    profiler = cProfile.Profile()
    running = False

    def toggle(*_: object) -> None:
        nonlocal running
        running = not running
        if running:
            profiler.enable()
            return
        profiler.disable()
        path = os.path.join(str(_directory), f"{os.getpid()}.pstats")
        profiler.dump_stats(f"{path}.part")
        os.rename(f"{path}.part", path)

    # gunicorn takes the ordinary signals for itself, and a worker dies of SIGTERM without running atexit.
    signal.signal(signal.SIGRTMIN, toggle)


if _directory and any("gunicorn" in argument for argument in sys.orig_argv):
    os.register_at_fork(after_in_child=_profile_on_signal)

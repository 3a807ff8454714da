"""Imported by every interpreter that has this folder on its path: profiles what gunicorn forks."""

import atexit
import cProfile
import os
import sys

_directory = os.environ.get("BENCH_PROFILE_DIRECTORY")


def _profile_this_process() -> None:
    profiler = cProfile.Profile()

    def finish() -> None:
        profiler.disable()
        profiler.dump_stats(os.path.join(str(_directory), f"{os.getpid()}.pstats"))

    atexit.register(finish)
    profiler.enable()


if _directory and any("gunicorn" in argument for argument in sys.orig_argv):
    os.register_at_fork(after_in_child=_profile_this_process)

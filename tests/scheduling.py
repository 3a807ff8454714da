"""Which tests run beside each other when several workers share them."""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling

#: Tests that run one after the other on one worker, by the files' beginnings: whole platforms, which take all of a
#: machine while they start, and several gateways under load, which are looked at by the clock. Beside each other they
#: would measure each other, and those that share a platform would start one on each worker.
GROUPS = {
    "platforms": ("bench/", "e2e/", "runtime/"),
    "processes": (
        "proxy/test_cache_suite.py",
        "proxy/test_capacity.py",
        "proxy/test_devices.py",
        "proxy/test_metering_exact.py",
        "proxy/test_outages.py",
        "proxy/test_processes.py",
        "proxy/test_restarts.py",
        "proxy/test_slow_clients.py",
        "proxy/test_streams.py",
        "proxy/test_switch.py",
        "proxy/test_token_limits.py",
        "proxy/test_unix_socket.py",
        "proxy/test_upstreams.py",
    ),
}


def group_of(nodeid: str) -> str:
    """Return the group that a test is of; its own id when it is of none."""
    for group, beginnings in GROUPS.items():
        if nodeid.removeprefix("tests/").startswith(beginnings):
            return group
    return nodeid


class GroupScheduling(LoadScopeScheduling):
    """Gives a whole group to one worker, the largest first, and every other test to whoever is free.

    xdist's own ``loadgroup`` writes the group into a test's id, which pytest 9.2 does not let it.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

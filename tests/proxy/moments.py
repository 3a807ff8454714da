"""The clock on the wall, where a test depends on it."""

from __future__ import annotations

import time

from proxy.limits import next_period
from zenzefi.lib import clock

#: Seconds that a test of a day's figures may take on a busy machine.
_NEEDED = 45


def stay_in_one_day() -> None:
    """Let midnight (UTC) pass first when it is near: days and months begin anew then."""
    left = (next_period("requests_per_day", clock.now()) - clock.now()).total_seconds()
    if left < _NEEDED:
        time.sleep(left + 0.1)

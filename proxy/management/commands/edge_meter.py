"""``manage.py edge_meter``: receives the log of an nginx in front and meters what it carried, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from proxy.edge_log import EdgeLog


class Command(BaseCommand):
    help = "Receive the log of an nginx in front on EDGE_LOG and meter what it carried. One on each machine with such."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.EDGE_SECRET:
            raise CommandError("EDGE_SECRET must be set for edge mode.")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._receive())

    async def _receive(self) -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        log = EdgeLog()
        try:
            await log.start()
        except OSError as exc:
            raise CommandError(f"EDGE_LOG {settings.EDGE_LOG} cannot be bound: {exc.strerror or exc}.") from None
        self.stdout.write(f"Receiving on {settings.EDGE_LOG}")
        await stopped.wait()
        await log.stop()

"""uvicorn as it serves the platform: its options, and how it ends."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

import uvicorn
from django.conf import settings

#: Seconds in which what the kernel had accepted before becomes a connection of ours.
_ACCEPTED_SECONDS = 0.05
#: Seconds in which clients may take the last bytes and answer a close frame. Ending at once would reset connections
#: whose clients are still sending, and what they were sent with them.
PARTING_SECONDS = 1.0


def options() -> dict[str, Any]:
    """Return uvicorn's options: uvloop, heads and messages that are bounded, nothing added to what the application
    sends.
    """
    conf = settings.GATEWAY
    return {
        "loop": "uvloop",
        "http": "zenzefi.runtime.protocol:BoundedHttpProtocol",
        "ws": "zenzefi.runtime.protocol:GracefulWebSocketProtocol",
        "ws_max_size": conf["websocket_max_bytes"],
        "ws_ping_interval": conf["websocket_ping"],
        "ws_ping_timeout": conf["websocket_ping"],
        "lifespan": "on",
        "access_log": False,
        # A proxied answer carries its upstream's Server and Date; a second one would be false.
        "server_header": False,
        "date_header": False,
        # uvicorn trusts X-Forwarded-For from loopback by default. Whom to trust is TRUSTED_PROXIES' affair.
        "proxy_headers": False,
        # Without it an open stream holds the worker for ever when it should stop.
        "timeout_graceful_shutdown": math.ceil(conf["shutdown_grace"]),
    }


class Server(uvicorn.Server):
    """Stops within the grace period and little more: nothing new is accepted and readiness is off at once, what is
    under way may end, and kept connections end with their next answer.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Only in the worker: what gunicorn's master has loaded stays as it is over a reload.
        from zenzefi.lib import health

        health.draining.set()
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(_ACCEPTED_SECONDS)
        # Tells them again, and those that have just come.
        await super().shutdown(sockets)
        for _ in range(round(PARTING_SECONDS / 0.02)):
            if not self.server_state.connections:
                return
            await asyncio.sleep(0.02)

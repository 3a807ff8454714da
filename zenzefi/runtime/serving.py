"""uvicorn as it serves the platform: its options, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
from typing import Any

import uvicorn
from django.conf import settings

logger = logging.getLogger(__name__)

#: Connections that are accepted in one turn of the loop, beside the one that libuv accepts.
ACCEPT_AT_ONCE = 128
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
    """Accepts as fast as clients come. Stops within the grace period and little more: nothing new is accepted and
    readiness is off at once, what is under way may end, and kept connections end with their next answer.
    """

    _listeners: list[socket.socket]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        # libuv accepts one connection in each turn of the loop. With a thousand busy ones a turn takes a tenth of a
        # second, and the thousand-and-first client waits for seconds.
        self._accepting: set[asyncio.Task[Any]] = set()
        self._listeners = []
        for server in getattr(self, "servers", []):
            for listener in server.sockets:
                # Another descriptor of the same socket: the loop has its own watcher on the first.
                own = socket.socket(fileno=os.dup(listener.fileno()))
                own.setblocking(False)
                self._listeners.append(own)
                self._watch(own)

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPT_AT_ONCE):
            try:
                peer, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                # No descriptor is left, most likely; it would be tried again in every turn.
                logger.warning("A connection could not be accepted: %s", exc)
                loop.remove_reader(listener.fileno())
                loop.call_later(1.0, self._watch, listener)
                return
            peer.setblocking(False)
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, peer, ssl=self.config.ssl))
            self._accepting.add(task)
            task.add_done_callback(self._accepted)

    def _accepted(self, task: asyncio.Task[Any]) -> None:
        self._accepting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.info("A connection could not be set up: %s", error)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Only in the worker: what gunicorn's master has loaded stays as it is over a reload.
        from zenzefi.lib import health

        health.draining.set()
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
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

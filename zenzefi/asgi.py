"""The ASGI application: the gateway's paths go to the data plane, everything else to Django.

``/api/v1/proxy/`` (HTTP and WebSocket) and ``/edge/``, where other proxies ask for a decision, never enter Django, and
the lifespan events start and stop the gateway.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")

django_application = get_asgi_application()

# Django must be set up before anything that touches its settings or models is imported.
from proxy import forward_auth  # noqa: E402
from proxy.gateway import Gateway  # noqa: E402
from zenzefi.lib.bodies import BodyLimit  # noqa: E402

logger = logging.getLogger(__name__)

control_plane = BodyLimit(django_application)


class Application:
    """Sends each connection to the plane it is for."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await _lifespan(self._gateway, receive, send)
            return
        path: str = scope["path"]
        if path.startswith("/api/v1/proxy/") or path == "/api/v1/proxy":
            await self._gateway(scope, receive, send)
        elif kind == "http":
            if path.startswith("/edge/"):
                await forward_auth.answer(self._gateway, scope, send)
            else:
                await control_plane(scope, receive, send)
        else:
            await receive()
            await _refuse_websocket(send)


application = Application(Gateway())


async def _refuse_websocket(send: Any) -> None:
    """Answer 404 to a handshake: no WebSocket lives outside the gateway."""
    request_id = uuid.uuid4().hex
    body = json.dumps({"detail": "Not found.", "code": "not_found", "request_id": request_id}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _lifespan(gateway: Gateway, receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            # A neighbour that is away is met again later; only a broken configuration keeps a worker from serving.
            await gateway.start()
            await send({"type": "lifespan.startup.complete"})
        else:
            try:
                await gateway.stop()
            except Exception:
                logger.exception("The gateway did not stop cleanly")
            await send({"type": "lifespan.shutdown.complete"})
            return

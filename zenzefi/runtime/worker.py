"""The server process of web and gateway: uvicorn under gunicorn."""

from __future__ import annotations

import math

from django.conf import settings
from uvicorn_worker import UvicornWorker


class GatewayWorker(UvicornWorker):
    """uvicorn with uvloop and httptools, a bounded head, and nothing added to what the application sends."""

    CONFIG_KWARGS = {
        "loop": "uvloop",
        "http": "zenzefi.runtime.protocol:BoundedHttpProtocol",
        "ws": "websockets-sansio",
        "lifespan": "on",
        "access_log": False,
        # A proxied answer carries its upstream's Server and Date; a second one would be false.
        "server_header": False,
        "date_header": False,
        # uvicorn trusts X-Forwarded-For from loopback by default. Whom to trust is TRUSTED_PROXIES' affair.
        "proxy_headers": False,
        # Without it an open stream holds the worker for ever when it should stop.
        "timeout_graceful_shutdown": math.ceil(settings.GATEWAY["shutdown_grace"]),
    }

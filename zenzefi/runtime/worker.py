"""The server process of web and gateway: uvicorn under gunicorn."""

from __future__ import annotations

import sys

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from zenzefi.runtime import serving


class GatewayWorker(UvicornWorker):
    """One process of :class:`zenzefi.runtime.serving.Server`."""

    CONFIG_KWARGS = serving.options()

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = serving.Server(config=self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

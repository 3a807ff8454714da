"""gunicorn's configuration, here and in a container: ``gunicorn -c python:zenzefi.runtime.gunicorn_conf``."""

from __future__ import annotations

import math
import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")

from django.conf import settings
from prometheus_client import multiprocess

from zenzefi.runtime import processes

wsgi_app = "zenzefi.asgi:application"
bind = [f"{settings.HOST}:{settings.PORT}"]
if settings.UNIX_SOCKET:
    bind.append(f"unix:{settings.UNIX_SOCKET}")
workers = settings.WEB_WORKERS
worker_class = "zenzefi.runtime.worker.GatewayWorker"
backlog = 2048
# Seconds. Longer than the 60 for which nginx keeps its own idle connections, so that it is not us who hang up
# just as it sends the next request.
keepalive = 75
# A worker whose event loop is stuck for this long is replaced.
timeout = 60
# After uvicorn's own limit, which still has to cut streams, flush the meters and see the last bytes off.
graceful_timeout = math.ceil(settings.GATEWAY["shutdown_grace"]) + 5
accesslog = None
errorlog = "-"
loglevel = "warning"
control_socket_disable = True


def post_fork(server: Any, worker: Any) -> None:
    """uvicorn does not notice that its master was killed; the workers would keep the port."""
    processes.end_with_parent()


def post_worker_init(worker: Any) -> None:
    """Look at the neighbours at once: a worker that could serve stays ready when one of them goes away later."""
    from zenzefi.lib import health

    health.monitor.report(wait=0)


def child_exit(server: Any, worker: Any) -> None:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(worker.pid)

"""The ASGI application: the gateway's paths go to the data plane, everything else to Django.

``/api/v1/proxy/`` (HTTP and WebSocket) never enters Django, and the lifespan events start and stop the gateway.
"""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")

application = get_asgi_application()

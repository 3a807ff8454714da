"""Ask the server of this container whether it lives: ``python -m zenzefi.runtime.probe [path]``.

Sends a Host that ALLOWED_HOSTS admits, which a plain request to 127.0.0.1 does not in production. Exits 0 on 200.
"""

from __future__ import annotations

import http.client
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")

from django.conf import settings


def main(path: str = "/health/live") -> int:
    """Return the exit code: 0 when the path answers 200 within three seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.PORT, timeout=3)
    try:
        connection.request("GET", path, headers={"Host": settings.ALLOWED_HOSTS[0].lstrip(".")})
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))

"""The servers that the settings ask for: ours where no URL names others."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings

from zenzefi.runtime import embedded
from zenzefi.runtime.processes import Progress


def ours() -> tuple[bool, bool]:
    """Return whether PostgreSQL and Redis are the embedded ones."""
    return (
        embedded.database_url(settings.VAR_DIR) == settings.DATABASE_URL,
        embedded.redis_url(settings.VAR_DIR) == settings.REDIS_URL,
    )


def ensure(progress: Progress, *, check: Callable[[], None] = lambda: None, fsync: bool = True) -> embedded.Lease:
    """Start the embedded ones of the two and return a lease on them; see ``embedded.ensure``."""
    postgres, redis = ours()
    return embedded.ensure(
        settings.VAR_DIR, postgres=postgres, redis=redis, progress=progress, check=check, fsync=fsync
    )

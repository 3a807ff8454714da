"""The PostgreSQL and Redis the project brings along, when no URL names others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def _socket_dir(var_dir: Path) -> Path:
    digest = hashlib.sha256(str(var_dir.resolve()).encode()).hexdigest()[:12]
    return Path("/tmp") / f"zenzefi-{os.geteuid()}-{digest}"  # noqa: S108


def database_url(var_dir: Path) -> str:
    """Return the URL of the embedded PostgreSQL of a data directory."""
    return f"postgresql://postgres@/zenzefi?host={_socket_dir(var_dir)}"


def redis_url(var_dir: Path) -> str:
    """Return the URL of the embedded Redis of a data directory."""
    return f"unix://{_socket_dir(var_dir)}/redis.sock?db=0"

"""What is refused about bundles."""

from __future__ import annotations

from zenzefi.lib.errors import NotFound


class BundleNotFound(NotFound):
    """No such bundle."""

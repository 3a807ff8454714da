"""A small real HTTP server that stands in for a Zenzefi server, for demonstrations and tests.

Run it with ``python -m zenzefi.runtime.demo_upstream --port 9000``. Beside an invented certificate inventory
it has routes that show how a proxy treats a request (``/inspect``, ``/echo``) and how it copes with one
that is slow, large, endless or broken. Paths are matched on the bytes that arrived, never on a decoded or
normalised form: a client or proxy that rewrites a path gets a 404 which names what came.
"""

from zenzefi.runtime.demo_upstream.app import make_app, make_runner, serve
from zenzefi.runtime.demo_upstream.exchange import Exchange
from zenzefi.runtime.demo_upstream.wire import GZIP_DECODED, SMALL_JSON, pattern, pattern_sha256

__all__ = [
    "GZIP_DECODED",
    "SMALL_JSON",
    "Exchange",
    "make_app",
    "make_runner",
    "pattern",
    "pattern_sha256",
    "serve",
]

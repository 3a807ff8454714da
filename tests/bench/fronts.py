"""What is compared: each front is opened before one static upstream, with as many workers as the others."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.edge import edge_front, edge_settings
from tests.bench.gateway import gateway
from tests.bench.nginx import Front, StaticUpstream, proxy_front

PASS = "nginx proxy_pass"
AUTH = "nginx auth_request"
GATEWAY = "gateway"
#: nginx that asks the gateway about each request and carries the bytes itself.
EDGE = "edge mode"
#: No front: what all of them stand before.
DIRECT = "upstream"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a front is given: a directory of its own, what to stand before, and how many processes carry requests."""

    directory: Path
    upstream: StaticUpstream
    workers: int


Opener = Callable[[Ground], AbstractContextManager[Front]]


def _proxy_pass(ground: Ground) -> AbstractContextManager[Front]:
    return proxy_front(ground.directory, PASS, target=ground.upstream.url, workers=ground.workers)


def _auth_request(ground: Ground) -> AbstractContextManager[Front]:
    upstream = ground.upstream
    return proxy_front(ground.directory, AUTH, target=upstream.url, auth_url=upstream.auth_url, workers=ground.workers)


@contextlib.contextmanager
def _gateway(ground: Ground) -> Iterator[Front]:
    with gateway(ground.directory / "gateway", target=ground.upstream.url, workers=ground.workers) as running:
        yield running.front


@contextlib.contextmanager
def _edge(ground: Ground) -> Iterator[Front]:
    agreed = edge_settings()
    directory = ground.directory / "edge"
    directory.mkdir()
    with (
        # A socket's path may have about a hundred bytes.
        tempfile.TemporaryDirectory(prefix="zu", dir="/tmp") as sockets,
        gateway(
            directory / "gateway",
            target=ground.upstream.url,
            workers=ground.workers,
            extra=agreed.environment() | {"UNIX_SOCKET": f"{sockets}/web.sock"},
        ) as running,
        edge_front(directory / "nginx", running, name=EDGE, workers=ground.workers) as front,
    ):
        yield front


#: As ``--fronts`` names them, in the order they are measured. Each front's name is the one its opener gives it.
FRONTS: dict[str, Opener] = {
    "proxy_pass": _proxy_pass,
    "auth_request": _auth_request,
    "gateway": _gateway,
    "edge": _edge,
}
#: What a machine is checked with; everything else is ours.
NGINX = ("proxy_pass", "auth_request")


@contextlib.contextmanager
def opened(names: list[str], *, directory: Path, upstream: StaticUpstream, workers: int) -> Iterator[list[Front]]:
    """Starts these fronts, and stops them at the end of the block."""
    ground = Ground(directory, upstream, workers)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(FRONTS[name](ground)) for name in names]

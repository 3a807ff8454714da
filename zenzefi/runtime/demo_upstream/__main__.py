"""Starts the demo upstream; see the package."""

import argparse
import asyncio
from collections.abc import Callable

from zenzefi.runtime.demo_upstream import serve


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="demo_upstream", description="A stand-in for a Zenzefi server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--uds", help="listen on this Unix socket instead")
    options = parser.parse_args(arguments)
    try:
        import uvloop

        new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    except ImportError:
        new_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(serve(host=options.host, port=options.port, uds=options.uds))
        except OSError as error:
            raise SystemExit(f"demo upstream: {error}") from error


if __name__ == "__main__":
    main()

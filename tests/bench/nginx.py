"""nginx as upstream, with one worker process, and as the two fronts the gateway is compared with."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench.processes import BenchError, ProcessList, family_of, running
from tests.shipped_nginx import nginx_path
from tests.upstream import unused_port, wait_until

SMALL_SIZE = 250


@dataclass(frozen=True, slots=True)
class Front:
    """Something that carries requests to the upstream: where it listens, and whose CPU and memory it costs."""

    name: str
    base_url: str
    processes: ProcessList
    headers: dict[str, str] = field(default_factory=dict)

    def url(self, path: str) -> str:
        return self.base_url + path


def nginx_program() -> str:
    program = nginx_path()
    if program is None:
        raise BenchError("nginx is missing: install it (Debian: apt-get install nginx-light) and run again.")
    return program


def _configuration(directory: Path, servers: str, workers: int) -> str:
    # Run as root, nginx gives its workers to an account that may not enter our private directory.
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
{user}
daemon off;
worker_processes {workers};
worker_rlimit_nofile 65536;
pid "{directory}/pid";
error_log "{directory}/error.log" crit;
events {{ worker_connections 16384; multi_accept on; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_timeout 75s;
  keepalive_requests 1000000000;
  open_file_cache max=16 inactive=300s;
  client_max_body_size 0;
  client_body_temp_path "{directory}/body";
  proxy_temp_path "{directory}/proxy";
  fastcgi_temp_path "{directory}/fastcgi";
  uwsgi_temp_path "{directory}/uwsgi";
  scgi_temp_path "{directory}/scgi";
  {servers}
}}
"""


@contextlib.contextmanager
def _nginx(directory: Path, servers: str, ports: list[int], *, workers: int = 1) -> Iterator[ProcessList]:
    program = nginx_program()
    directory.mkdir(parents=True)
    configuration = directory / "nginx.conf"
    configuration.write_text(_configuration(directory, servers, workers))
    log = directory / "output.log"
    with running([program, "-p", str(directory), "-c", str(configuration)], log=log) as child:

        def accepts() -> bool:
            if child.poll() is not None:
                raise BenchError(f"nginx did not start: {log.read_text().strip()}")
            for port in ports:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) != 0:
                        return False
            return True

        wait_until(accepts, seconds=10, what="nginx")

        def processes() -> list[psutil.Process]:
            return family_of(child.pid)

        yield processes


@dataclass(frozen=True, slots=True)
class StaticUpstream:
    url: str
    auth_url: str


@contextlib.contextmanager
def static_upstream(directory: Path, sizes: list[int]) -> Iterator[StaticUpstream]:
    """Serves `/{size}` for each size in bytes, and on a second port 204 to everything (for auth_request)."""
    files = directory / "files"
    files.mkdir(parents=True)
    for size in sizes:
        (files / str(size)).write_bytes(b"x" * size)
    port, auth_port = unused_port(), unused_port()
    small = "x" * SMALL_SIZE
    servers = f"""
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root "{files}";
    location = /{SMALL_SIZE} {{ return 200 "{small}"; }}
  }}
  server {{
    listen 127.0.0.1:{auth_port} backlog=4096;
    location / {{ return 204; }}
  }}"""
    with _nginx(directory / "upstream", servers, [port, auth_port]):
        yield StaticUpstream(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{auth_port}")


@contextlib.contextmanager
def proxy_front(
    directory: Path,
    name: str,
    *,
    target: str,
    auth_url: str | None = None,
    backlog: int = 4096,
    workers: int = 1,
) -> Iterator[Front]:
    """`proxy_pass` over kept connections, with `auth_request` before it when there is an auth_url.

    Answers are buffered in memory as nginx does by default, but never in a temporary file; uploads stream.
    """
    port = unused_port()
    host = target.removeprefix("http://")
    keep = "proxy_http_version 1.1; proxy_set_header Connection '';"
    upstreams = f"upstream carried {{ server {host}; keepalive 1024; keepalive_requests 1000000000; }}"
    check, decision = "", ""
    if auth_url is not None:
        auth_host = auth_url.removeprefix("http://")
        upstreams += f" upstream decided {{ server {auth_host}; keepalive 1024; keepalive_requests 1000000000; }}"
        check = "auth_request /_decision;"
        decision = f"""location = /_decision {{
      internal;
      {keep}
      proxy_set_header Content-Length '';
      proxy_pass_request_body off;
      proxy_pass http://decided/;
    }}"""
    # With one socket for all, the worker that wakes first would accept most of what connects at once.
    shared = "" if workers == 1 else " reuseport"
    servers = f"""
  {upstreams}
  server {{
    listen 127.0.0.1:{port} backlog={backlog}{shared};
    location / {{
      {check}
      {keep}
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
      proxy_pass http://carried;
    }}
    {decision}
  }}"""
    with _nginx(directory / name.replace(" ", "-"), servers, [port], workers=workers) as processes:
        yield Front(name, f"http://127.0.0.1:{port}", processes)

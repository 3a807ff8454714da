"""What a carrier, an nginx in front, must be told of the servers and of us; see ``deploy/nginx/zenzefi.conf``.

``deploy/nginx/`` holds what is the same everywhere. Here is made what depends on the settings and on the rows of the
servers: who the carrier is, where its log goes, how long it waits, and a location for each server. A server that the
carrier has not been told of, or not since it changed, the gateway relays to by itself.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings

from proxy import edge, edge_log
from proxy.headers import LEFT_OUT, PUBLIC_PREFIX
from proxy.targets import DISABLED, TargetSpec, host_of
from zenzefi.settings.env import ConfigurationError

#: Connections that a carrier keeps open to a server, for each of its processes.
KEPT_CONNECTIONS = 256
#: Where Debian keeps them, should this machine's OpenSSL name no file.
SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_PLAIN_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._~/%-]*")


def render(specs: Sequence[TargetSpec]) -> dict[str, str]:
    """Return the files of a carrier's configuration by their names.

    Raises :class:`ConfigurationError` without ``EDGE_SECRET``.
    """
    if not settings.EDGE_SECRET:
        raise ConfigurationError("EDGE_SECRET must be set for edge mode.")
    servers = [spec for spec in specs if spec.state != DISABLED and spec.carried_at_edge and _is_plain(spec)]
    files = {
        "upstreams.conf": _upstreams(servers),
        "proof.conf": _proof(servers),
        "carried.conf": _carried(),
        "locations.conf": "\n".join(
            _location(spec, servers, name, coded=coded)
            for spec in servers
            for name, coded in ((edge.LOCATION, False), (edge.LOCATION_CODED, True))
        ),
    }
    for spec in servers:
        for suffix, text in (
            ("authority.pem", _authority(spec)),
            ("client.pem", spec.client_certificate),
            ("client-key.pem", spec.client_key),
        ):
            if text:
                files[f"{spec.carrier_key}-{suffix}"] = text.strip() + "\n"
    return files


def write(files: dict[str, str], directory: Path) -> list[str]:
    """Write what differs from what is there, and return its names.

    Nobody else may read the files: they hold the carrier's proof and private keys. Those of servers that are gone are
    taken away. Each is replaced at once, so that a carrier that starts meanwhile reads the one or the other.
    """
    directory.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, text in files.items():
        path = directory / name
        if path.exists() and path.read_text() == text:
            continue
        fresh = directory / f".{name}.new"
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        fresh.replace(path)
        changed.append(name)
    for path in directory.glob("*-*.pem"):
        if re.fullmatch(r"[0-9a-f]{16}-(authority|client|client-key)\.pem", path.name) and path.name not in files:
            path.unlink()
            changed.append(path.name)
    return changed


def _is_plain(spec: TargetSpec) -> bool:
    """Whether a server's address can be written down without quoting; to another one the gateway relays itself."""
    parts = urlsplit(spec.url)
    return bool(_PLAIN_HOST.fullmatch(parts.netloc) and _PLAIN_PATH.fullmatch(parts.path)) and (
        not spec.host or bool(_PLAIN_HOST.fullmatch(spec.host))
    )


def _authority(spec: TargetSpec) -> str:
    if not spec.is_secure:
        return ""
    if spec.ca_certificates:
        return spec.ca_certificates
    return settings.ZENZEFI_CA_FILE.read_text() if settings.ZENZEFI_CA_FILE else ""


def _base(spec: TargetSpec) -> str:
    return urlsplit(spec.url).path.rstrip("/")


def _origins(spec: TargetSpec) -> list[str]:
    """Return the spellings of a server's own address in what it says, as regular expressions."""
    scheme = urlsplit(spec.url).scheme
    default = ":443" if spec.is_secure else ":80"
    found = []
    for host in (host_of(spec.url), spec.host):
        if host.endswith(default) or (host and not re.search(r":\d+$", host)):
            found.append(f"(?:{scheme}:)?//{re.escape(host.removesuffix(default))}(?:{default})?")
        elif host:
            found.append(f"(?:{scheme}:)?//{re.escape(host)}")
    return list(dict.fromkeys(found))


def _rewrites(spec: TargetSpec, specs: Sequence[TargetSpec]) -> list[tuple[str, str]]:
    """Return regular expressions of addresses below a server's base, and what they become on our side.

    As :class:`proxy.headers.Rewriter` has it: also the address of another of the servers is ours.
    """
    origins = "|".join(dict.fromkeys(origin for one in (spec, *specs) for origin in _origins(one)))
    base = re.escape(_base(spec))
    rewrites = [
        (f"^(?:{origins}){base}(/.*)$", f"{PUBLIC_PREFIX}$1"),
        (f"^(?:{origins}){base}([?#].*)?$", f"{PUBLIC_PREFIX}{'' if base else '/'}$1"),
        (f"^{base}(/(?!/).*)$", f"{PUBLIC_PREFIX}$1"),
    ]
    if base:
        rewrites.append((f"^{base}([?#].*)?$", f"{PUBLIC_PREFIX}$1"))
    return rewrites


def _upstreams(specs: Sequence[TargetSpec]) -> str:
    blocks = []
    for spec in specs:
        parts = urlsplit(spec.url)
        port = parts.port or (443 if spec.is_secure else 80)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        most = f" max_conns={spec.max_connections}" if spec.max_connections else ""
        blocks.append(
            f"upstream {edge.LOCATION}{spec.carrier_key} {{\n"
            # Which server a request goes to, and whether it works, is the gateway's to say.
            f"    server {host}:{port} max_fails=0{most};\n"
            f"    keepalive {KEPT_CONNECTIONS};\n"
            f"    keepalive_requests 1000000;\n"
            # As long as the gateway keeps its own.
            f"    keepalive_timeout 30s;\n"
            f"}}\n"
            # What nginx has no directive for.
            f"map $upstream_http_content_location $carry_content_location_{spec.carrier_key} {{\n"
            f"    default $upstream_http_content_location;\n"
            + "".join(f'    "~*{pattern}" {ours};\n' for pattern, ours in _rewrites(spec, specs))
            + "}\n"
        )
    return "".join(blocks)


def _proof(specs: Sequence[TargetSpec]) -> str:
    known = " ".join([settings.EDGE_SECRET, *(spec.carrier_key for spec in specs)])
    return f'proxy_set_header X-Zenzefi-Edge "{known}";\n'


def _carried() -> str:
    """Return what every location of a server has in common and the settings decide."""
    conf = settings.GATEWAY
    log = f"syslog:server={settings.EDGE_LOG},nohostname,tag={edge_log.tag(settings.EDGE_SECRET)}"
    lines = [f'proxy_set_header {name.decode()} "";' for name in sorted(LEFT_OUT)]
    lines += [
        f"proxy_connect_timeout {_ms(conf['connect_timeout'])};",
        # nginx has one time for the first byte and for those that follow.
        f"proxy_read_timeout {_ms(max(conf['first_byte_timeout'], conf['idle_timeout']))};",
        f"proxy_send_timeout {_ms(conf['idle_timeout'])};",
        f"send_timeout {_ms(conf['unread_timeout'])};",
        f"access_log {log} zenzefi_carried;",
    ]
    return "\n".join(lines) + "\n"


def _location(spec: TargetSpec, specs: Sequence[TargetSpec], prefix: str, *, coded: bool) -> str:
    key, base = spec.carrier_key, re.escape(_base(spec))
    lines = [
        f"set $carry_server {key};",
        "include zenzefi/carry.conf;",
        "include zenzefi/carried.conf;",
        f'proxy_set_header Host "{spec.host or host_of(spec.url)}";',
        f"add_header Content-Location $carry_content_location_{key} always;",
        *(f'proxy_redirect "~*{pattern}" {ours};' for pattern, ours in _rewrites(spec, specs)),
        f'proxy_cookie_path "~^{f"(?:{base})?" if base else ""}/$" {PUBLIC_PREFIX};',
        f'proxy_cookie_path "~^{base}(/.*)$" {PUBLIC_PREFIX}$1;',
    ]
    domains = sorted({domain for one in (spec, *specs) for domain in _domains(one)})
    if domains:
        lines.append(f'proxy_cookie_domain "~^\\.?(?:{"|".join(map(re.escape, domains))})$" "";')
    if coded:
        # Deployed clients decode an encoded body and cut the result at the encoded length. A field for a trailer that
        # stays empty makes nginx send chunks instead of a length.
        lines.append("add_trailer X-Carried $carry_nothing;")
    if spec.is_secure:
        lines += _tls(spec)
    scheme = "https" if spec.is_secure else "http"
    lines.append(f"proxy_pass {scheme}://{edge.LOCATION}{key}$carry_uri;")
    body = "".join(f"    {line}\n" for line in lines)
    return f"# {_comment(spec.name)}\nlocation @{prefix}{key} {{\n{body}}}\n"


def _domains(spec: TargetSpec) -> list[str]:
    """Return what a server may name as the domain of a cookie: its host and what that is a part of."""
    found = []
    for host in (urlsplit(spec.url).hostname or "", urlsplit(f"//{spec.host}").hostname or ""):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            labels = host.split(".")
            found += [".".join(labels[at:]) for at in range(len(labels)) if labels[at]]
        else:
            found.append(host)
    return found


def _tls(spec: TargetSpec) -> list[str]:
    key = spec.carrier_key
    authority = f"zenzefi/{key}-authority.pem" if _authority(spec) else ssl.get_default_verify_paths().cafile
    lines = [
        "proxy_ssl_verify on;",
        "proxy_ssl_verify_depth 5;",
        "proxy_ssl_server_name on;",
        # Verified is the address, as the gateway does it, whatever Host is sent.
        f"proxy_ssl_name {urlsplit(spec.url).hostname};",
        "proxy_ssl_protocols TLSv1.2 TLSv1.3;",
        f"proxy_ssl_trusted_certificate {authority or SYSTEM_AUTHORITIES};",
    ]
    if spec.client_certificate:
        lines.append(f"proxy_ssl_certificate zenzefi/{key}-client.pem;")
        lines.append(f"proxy_ssl_certificate_key zenzefi/{key}-client-key.pem;")
    return lines


def _comment(text: str) -> str:
    """A name is anybody's text; in the configuration it must stay within its line."""
    return re.sub(r"[^\w .:/-]", "?", text, flags=re.ASCII)[:80]


def _ms(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"

"""The upstream's certificate is verified, against the configured authority where there is one."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy import selectors, upstream_services
from proxy.models import UpstreamTarget
from tests.proxy.live import LiveGateway
from tests.proxy.test_refusals import assert_refused
from zenzefi.lib import health


def certificate(directory, *, address="127.0.0.1", ends=timedelta(days=1)):
    """Write a self-signed certificate with its key; return both paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "zenzefi.test")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


class TLSServer(ThreadingHTTPServer):
    daemon_threads = True
    chain: Path
    seen: list[str]

    def handle_error(self, request, client_address):
        """Refused handshakes are what these tests are about."""


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        assert isinstance(self.server, TLSServer)
        self.server.seen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


@pytest.fixture
def tls_server(tmp_path, request):
    chain, key = certificate(tmp_path, **getattr(request, "param", {}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    server = TLSServer(("127.0.0.1", 0), Hello)
    server.seen = []
    server.chain = chain
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(settings, server, issued, ca_file):
    settings.ZENZEFI_TARGET_URLS = [f"https://127.0.0.1:{server.server_address[1]}"]
    settings.ZENZEFI_CA_FILE = ca_file
    with LiveGateway().running() as live, live.client(issued.secret) as client:
        return client.get("x?y=1")


def test_a_certificate_of_the_configured_authority_is_accepted(settings, tls_server, issue):
    issued = issue()
    assert get(settings, tls_server, issued, tls_server.chain).content == b"hello"
    assert tls_server.seen == ["/x?y=1"]


def test_an_unknown_authority_is_refused_and_nothing_sent(settings, tls_server, issue):
    issued = issue()
    assert_refused(get(settings, tls_server, issued, None), 502, "upstream_unreachable")
    assert tls_server.seen == []
    assert issued.reload().activated_at is None


@pytest.mark.parametrize("tls_server", [{"address": "127.0.0.2"}, {"ends": timedelta(days=-1)}], indirect=True)
def test_a_certificate_for_another_name_or_time_is_refused(settings, tls_server, issue):
    assert_refused(get(settings, tls_server, issue(), tls_server.chain), 502, "upstream_unreachable")
    assert tls_server.seen == []


# --- servers as rows, with an authority and a certificate of ours for each


@pytest.fixture
def demanding(tmp_path):
    """A server that wants a client certificate of one authority."""
    (tmp_path / "server").mkdir()
    (tmp_path / "client").mkdir()
    chain, key = certificate(tmp_path / "server")
    ours, our_key = certificate(tmp_path / "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.load_verify_locations(ours)
    context.verify_mode = ssl.CERT_REQUIRED
    server = TLSServer(("127.0.0.1", 0), Hello)
    server.seen = []
    server.chain = chain
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, chain.read_text(), ours.read_text(), our_key.read_text()
    server.shutdown()
    server.server_close()
    thread.join()


def store(server, **fields):
    key = fields.pop("client_key", None)
    target = UpstreamTarget(name="secure", url=f"https://127.0.0.1:{server.server_address[1]}", probe_path="", **fields)
    return upstream_services.save_target(target=target, client_key=key)


def test_a_server_gets_our_certificate_and_is_verified_by_its_own_authority(demanding, issue):
    server, authority, ours, key = demanding
    target = store(server, ca_certificates=authority, client_certificate=ours, client_key=key)
    issued = issue()
    with LiveGateway().running() as live, live.client(issued.secret) as client:
        assert client.get("x?y=1").content == b"hello"
        assert health.check_zenzefi().status == "healthy"
    assert server.seen == ["/x?y=1", "/"]
    # What is stored is no key to anybody without SECRET_KEY.
    assert b"PRIVATE KEY" not in bytes(target.client_key)
    assert key not in repr(selectors.upstream_targets())


@pytest.mark.parametrize("missing", ["certificate", "authority"])
def test_without_our_certificate_or_its_authority_nothing_is_sent(demanding, issue, missing):
    server, authority, ours, key = demanding
    if missing == "certificate":
        store(server, ca_certificates=authority)
    else:
        store(server, client_certificate=ours, client_key=key)
    issued = issue()
    with LiveGateway().running() as live, live.client(issued.secret) as client:
        assert_refused(client.get("x"), 502, "upstream_unreachable")
    assert server.seen == []
    assert issued.reload().activated_at is None


def test_a_key_that_cannot_be_read_any_more_keeps_only_its_own_server_out(demanding, upstream, issue, settings):
    server, authority, ours, key = demanding
    store(server, ca_certificates=authority, client_certificate=ours, client_key=key)
    UpstreamTarget.objects.create(name="plain", url=upstream.url, probe_path="")
    settings.SECRET_KEY = "another-" + settings.SECRET_KEY
    with LiveGateway().running() as live, live.client(issue().secret) as client:
        assert [client.get("json").status_code for _ in range(3)] == [200] * 3
        assert [target.spec.name for target in live.gateway.upstream.targets] == ["plain"]
    assert server.seen == []

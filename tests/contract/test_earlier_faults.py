"""Faults that an earlier backend had, as far as no test beside their own part looks for them."""

from __future__ import annotations

import datetime as dt
import ipaddress
import logging
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.db import IntegrityError
from django.test import Client

from accounts.services import registration
from tests.api import Api
from tests.factories import PASSWORD, UserFactory
from tests.money import user_with
from tests.proxy.conftest import issue, live, own_redis_keys, upstream  # noqa: F401 - fixtures
from tests.proxy.live import LiveGateway
from tests.upstream import wait_until
from wallet.models import Transfer
from wallet.selectors import balance_of
from zenzefi.lib.logging import LineFormatter, redact

# --- upstream over TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1, with its key, that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "upstream.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def tls_upstream(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hello) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("trusted", [False, True])
def test_the_upstreams_certificate_is_verified(settings, certificate, tls_upstream, issue, trusted):  # noqa: F811
    settings.ZENZEFI_TARGET_URLS = [tls_upstream]
    settings.ZENZEFI_CA_FILE = certificate if trusted else None
    issued = issue()

    with LiveGateway().running() as gateway, gateway.client(issued.secret) as client:
        response = client.get("certificates/filter")

    assert response.status_code == (200 if trusted else 502)
    assert (issued.reload().activated_at is not None) == trusted


# --- many slow requests at once


def test_slow_requests_hold_up_neither_health_nor_each_other(live, upstream, issue):  # noqa: F811
    """A worker froze at sixteen of them."""
    issued = issue()

    def slow(client: httpx.Client) -> int:
        return client.get("slow?seconds=10").status_code

    with ExitStack() as clients, ThreadPoolExecutor(40) as pool:
        # Made beforehand: that takes longer than forty requests do.
        callers = [clients.enter_context(live.client(issued.secret)) for _ in range(40)]
        for caller in callers:
            caller.timeout = httpx.Timeout(60)
        running = [pool.submit(slow, caller) for caller in callers]
        wait_until(lambda: upstream.in_progress == 40, what="forty requests under way")
        for path in ("/health/live", "/api/v1/bundles"):
            assert httpx.get(live.url + path, timeout=30, trust_env=False).status_code == 200
        assert upstream.in_progress == 40, "they were answered before, not during"
        assert {future.result() for future in running} == {200}


# --- secrets in logs


@pytest.mark.parametrize(
    "secret",
    [
        "$argon2id$v=19$m=102400,t=2,p=8$c29tZXNhbHQ$aGFzaGhhc2hoYXNo",
        "znz_CXmpxyu0Z5kjFS1jBgvS2QtCi8ALy_GD3xnKNebl0z3NAiCpqZqwQf4GA58g",
        "zrt_CXmpxyu0Z5kjFS1jBgvS2QtCi8ALy_GD3xnKNebl0z3NAiCpqZqwQf4GA58g",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
    ],
)
def test_no_credential_is_logged(secret):
    assert secret.rpartition("$")[2] not in redact(f"a line with {secret} in it")


@pytest.mark.django_db
def test_a_row_that_postgresql_refuses_leaves_no_hash_in_the_log(caplog):
    """The server's message quotes the whole row."""
    user = UserFactory.build()
    user.referred_by = user

    try:
        registration.add_user(user=user, actor=None)
    except IntegrityError:
        logging.getLogger("django.request").exception("Internal Server Error")
    [record] = [record for record in caplog.records if record.exc_info]
    line = LineFormatter().format(record)

    assert "Failing row contains" in line
    assert user.password not in line
    assert user.password.rpartition("$")[2][:16] not in line


# --- money by GET, and twice


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["currency/mock-purchase", "tokens/purchase"])
def test_a_safe_method_moves_no_money(method, path):
    user = user_with("100.00")
    bearer = Api().sign_in(user).access_token
    before = Transfer.objects.count()

    Client(headers={"Authorization": f"Bearer {bearer}"}).generic(
        method,
        f"/api/v1/{path}?amount=5&duration_hours=24",
        b'{"amount": "5", "duration_hours": 24}',
        "application/json",
    )

    assert Transfer.objects.count() == before
    assert balance_of(user).balance == 100


@pytest.mark.django_db
def test_addresses_that_differ_in_case_are_one_account():
    api = Api()
    fields = {"email": "Ada@Example.com", "username": "ada", "password": PASSWORD}
    api.post("auth/register", fields, status=201)

    api.post("auth/register", {**fields, "email": "aDA@eXAMPLE.COM", "username": "other"}, status=400)
    api.post("auth/login", {"email": "ADA@EXAMPLE.COM", "password": PASSWORD})

"""Zenzefi servers in the back office."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission

from notifications.models import OutboxEvent
from proxy import keys, selectors
from proxy.models import UpstreamTarget
from proxy.targets import unseal_key
from tests.factories import StaffFactory, SuperuserFactory
from tests.money import staff_client
from tests.proxy.test_tls import certificate
from zenzefi.lib import redis as redis_client

pytestmark = pytest.mark.django_db
LIST = "/admin/proxy/upstreamtarget/"
FIELDS = {"name": "one", "url": "https://zenzefi.test/base/", "weight": "3", "probe_path": "/"}


def act(client: Any, action: str, *targets: UpstreamTarget, **extra: Any) -> Any:
    data = {"action": action, "_selected_action": [str(target.pk) for target in targets], **extra}
    return client.post(LIST, data, follow=True)


def staff_with(*permissions: str) -> Any:
    staff: Any = StaffFactory()
    staff.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return staff_client(staff)


@pytest.fixture
def office():
    return staff_client(SuperuserFactory())


def test_a_server_is_added_and_changed(office):
    assert office.post(f"{LIST}add/", {**FIELDS, "scopes": ["certificates_only"]}).status_code == 302
    [spec] = selectors.upstream_targets()
    assert (spec.url, spec.weight, spec.scopes) == ("https://zenzefi.test/base", 3, frozenset({b"certificates_only"}))
    target = UpstreamTarget.objects.get()
    assert office.post(f"{LIST}{target.pk}/change/", {**FIELDS, "weight": "5"}).status_code == 302
    [spec] = selectors.upstream_targets()
    assert (spec.weight, spec.scopes) == (5, frozenset())


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://zenzefi.test"},
        {"url": "https://user:secret@zenzefi.test"},
        {"url": "https://zenzefi.test/?x=1"},
        {"url": "https://[zenzefi"},
        {"url": "https://zenzefi.test/a\tb"},
        {"url": "https://"},
        {"weight": "0"},
        {"weight": "1001"},
        {"host": "a\r\nb: c"},
        {"host": "a b"},
        {"probe_path": "json"},
        {"max_connections": "0"},
        {"name": "two words"},
        {"ca_certificates": "nonsense"},
        {"client_certificate": "-----BEGIN CERTIFICATE-----"},
        {"client_certificate": "nonsense", "new_client_key": "nonsense"},
    ],
)
def test_what_cannot_serve_is_refused(office, wrong):
    answer = office.post(f"{LIST}add/", {**FIELDS, **wrong})
    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors
    assert not UpstreamTarget.objects.exists()


def test_a_key_is_stored_encrypted_and_never_shown(office, tmp_path):
    chain, secret = (path.read_text() for path in certificate(tmp_path))
    sent = {**FIELDS, "ca_certificates": chain, "client_certificate": chain, "new_client_key": secret}
    assert office.post(f"{LIST}add/", sent).status_code == 302
    target = UpstreamTarget.objects.get()
    assert unseal_key(bytes(target.client_key)) == secret.strip()
    body = secret.splitlines()[1]
    assert body.encode() not in bytes(target.client_key)
    page = office.get(f"{LIST}{target.pk}/change/").content.decode()
    assert chain.splitlines()[1] in page
    assert body not in page

    # Kept while nothing is said of it, and gone on demand.
    assert office.post(f"{LIST}{target.pk}/change/", {**sent, "new_client_key": ""}).status_code == 302
    assert bytes(UpstreamTarget.objects.get().client_key) == bytes(target.client_key)
    refused = office.post(f"{LIST}{target.pk}/change/", {**sent, "new_client_key": "", "forget_client_key": "on"})
    assert refused.status_code == 200
    forget = {**FIELDS, "forget_client_key": "on"}
    assert office.post(f"{LIST}{target.pk}/change/", forget).status_code == 302
    assert not UpstreamTarget.objects.get().client_key


@pytest.mark.parametrize(
    ("action", "state"), [("drain", "draining"), ("switch_off", "disabled"), ("activate", "active")]
)
def test_an_action_asks_why_and_is_written_down(office, action, state):
    target = UpstreamTarget.objects.create(name="one", url="http://a.test", state="draining")
    if action == "drain":
        UpstreamTarget.objects.update(state="active")
    client = redis_client.client()
    seconds, microseconds = client.time()
    now = seconds * 1000 + microseconds // 1000
    client.hset(keys.upstream_in_flight(str(target.pk)), "worker", f"7:{now}")
    asked = act(office, action, target)
    assert "7" in asked.content.decode()
    before = UpstreamTarget.objects.get().state
    assert act(office, action, target, confirm="1", reason=" ").status_code == 200
    assert UpstreamTarget.objects.get().state == before
    assert not OutboxEvent.objects.exists()

    act(office, action, target, confirm="1", reason="maintenance")
    assert UpstreamTarget.objects.get().state == state
    event = OutboxEvent.objects.get()
    assert (event.event, event.data["state"], event.data["reason"]) == ("upstream.state_changed", state, "maintenance")
    assert "maintenance" in LogEntry.objects.get().get_change_message()

    act(office, action, target, confirm="1", reason="again")
    assert OutboxEvent.objects.count() == 1


def test_only_those_who_may_operate_do():
    target = UpstreamTarget.objects.create(name="one", url="http://a.test")
    for permissions in (("view_upstreamtarget",), ("view_upstreamtarget", "change_upstreamtarget")):
        act(staff_with(*permissions), "switch_off", target, confirm="1", reason="x")
        assert UpstreamTarget.objects.get().state == "active"
    act(staff_with("view_upstreamtarget", "operate_upstreamtarget"), "switch_off", target, confirm="1", reason="x")
    assert UpstreamTarget.objects.get().state == "disabled"


def test_the_list_shows_how_servers_are_doing_and_serves_without_redis(office, settings):
    target = UpstreamTarget.objects.create(name="one", url="http://a.test")
    client = redis_client.client()
    seconds, _ = client.time()
    client.hset(
        keys.upstream(str(target.pk)),
        mapping={"opens": 1, "until": (seconds + 60) * 1000, "error": "refused <b>", "error_at": seconds * 1000},
    )
    page = office.get(LIST).content.decode()
    assert "failed, resting" in page
    assert "refused &lt;b&gt;" in page
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    page = office.get(LIST).content.decode()
    assert "unknown" in page

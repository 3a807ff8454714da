"""Rules of scopes as data: methods, denials, versions, the tester, and what a change does to what runs."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import Permission
from django.db import connection, transaction
from django.db.utils import ProgrammingError

from proxy import scope_services
from proxy.exceptions import ReasonMissing, RulesUnchanged
from proxy.models import ScopeRule, ScopeVersion
from proxy.scope_tester import judge, raw_path_of
from proxy.scopes import METHODS, Rule, ScopeTable
from proxy.selectors import changes_of, scope_rules
from tests.factories import StaffFactory, SuperuserFactory, UserFactory
from tests.money import staff_client
from tests.proxy.live import read_response, request_bytes
from tests.proxy.test_revocation import CUT_WITHIN
from tests.threads import run_at_once
from tests.upstream import wait_until
from tokens.models import Scope
from tokens.services import revoke_token

RULES = "/admin/proxy/scoperule/"
VERSIONS = "/admin/proxy/scopeversion/"


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [
        ("GET", b"items/1", True),
        ("HEAD", b"items/1", True),
        ("POST", b"items/1", False),
        ("DELETE", b"items/1", False),
        ("POST", b"items", True),
        ("GET", b"items", False),
        ("PUT", b"any/1", True),
        ("PROPFIND", b"any/1", True),
        ("PROPFIND", b"items/1", False),
        ("get", b"items/1", False),
        # Denied whatever allows it, and for the method named only.
        ("GET", b"items/secret", False),
        ("HEAD", b"items/secret", False),
        ("GET", b"any/closed/1", False),
        ("PROPFIND", b"any/closed/1", False),
        ("GET", b"any/closed", True),
        ("DELETE", b"any/kept", False),
        ("GET", b"any/kept", True),
    ],
)
def test_methods_and_denials(method, path, is_open):
    rules = [
        Rule("s", "items/…", "GET"),
        Rule("s", "items", "POST"),
        Rule("s", "any/…"),
        Rule("s", "items/secret", deny=True),
        Rule("s", "any/closed/…", deny=True),
        Rule("s", "any/kept", "DELETE", deny=True),
        Rule("other", "items/…"),
        Rule("other", "any/closed/…"),
    ]
    for ordered in (rules, rules[::-1]):
        assert ScopeTable(ordered).is_open("s", path, method) is is_open


def test_a_denial_of_one_scope_leaves_the_others_alone():
    table = ScopeTable([Rule("a", "x/…"), Rule("b", "x/…"), Rule("a", "x/y", deny=True)])
    assert table.scopes_of(b"x/y", "GET") == b",b,"
    assert table.scopes_of(b"x/z", "GET") == b",a,b,"


def test_many_rules_cost_no_more_than_few():
    """Microseconds a decision, seen before and never seen; generous, so that only a search through all rules fails."""

    def cost(count: int, *, seen: bool) -> float:
        table = ScopeTable(Rule("s", f"a/{number}/b/…", METHODS[number % 6]) for number in range(count))
        paths = [b"a/1/b/c"] * 2000 if seen else [b"a/%d/b/c" % number for number in range(2000)]
        table.scopes_of(paths[0], "GET")
        # Of this thread alone: what else runs on the machine does not count.
        started = time.thread_time()
        for path in paths:
            table.scopes_of(path, "GET")
        return (time.thread_time() - started) / 2000 * 1e6

    assert min(cost(1000, seen=True) for _ in range(5)) < 20
    assert min(cost(1000, seen=False) for _ in range(5)) < 20 * max(1, min(cost(10, seen=False) for _ in range(5)))


def test_a_method_that_is_not_open_never_arrives(live, upstream, issue):
    scope = Scope.objects.create(slug="reader")
    ScopeRule.objects.create(scope=scope, pattern="inspect", method="GET")
    ScopeRule.objects.create(scope=scope, pattern="bytes/…")
    ScopeRule.objects.create(scope=scope, pattern="bytes/7", action="deny")
    with live.client(issue(scope="reader").secret) as client:
        wait_until(lambda: client.get("inspect").status_code == 200, what="the rules")
        assert client.head("inspect").status_code == 200
        assert client.get("bytes/6").status_code == 200
        upstream.clear()
        for method, path in (("POST", "inspect"), ("DELETE", "inspect"), ("GET", "bytes/7"), ("GET", "bytes/7/")):
            answer = client.request(method, path)
            assert (answer.status_code, answer.headers["x-zenzefi-error"]) == (403, "scope_forbidden")
    assert upstream.requests == []


def test_a_change_of_rules_cuts_what_it_closes_and_nothing_else(live, upstream, issue):
    scope = Scope.objects.create(slug="listener")
    rule = ScopeRule.objects.create(scope=scope, pattern="events")
    actor = UserFactory()
    issued, full = issue(scope="listener"), issue()
    with live.client(issued.secret) as client, live.client(full.secret) as other:
        wait_until(lambda: client.get("events?n=1").status_code == 200, what="the rule")
        with (
            client.stream("GET", "events?n=0&interval=0.1") as cut,
            other.stream("GET", "events?n=25&interval=0.1") as kept,
        ):
            pieces = cut.iter_raw()
            next(pieces)
            scope_services.remove_rules(rule_ids=[rule.pk], actor=actor, reason="closed")
            started = time.monotonic()
            with pytest.raises(httpx.RemoteProtocolError):
                for _ in pieces:
                    pass
            assert time.monotonic() - started < CUT_WITHIN
            assert client.get("events?n=1").status_code == 403
            assert b"".join(kept.iter_raw()).count(b"event: tick") == 25


def test_a_token_that_changes_its_scope_loses_its_streams(live, issue):
    issued = issue(scope="full")
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.1") as stream:
        pieces = stream.iter_raw()
        next(pieces)
        from tokens.signals import credentials_changed

        type(issued.token).objects.filter(pk=issued.token.pk).update(scope_id="certificates_only")
        credentials_changed.send(sender=None, digests=[issued.token.digest], token_ids=[issued.token.pk], revoked=False)
        started = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass
        assert time.monotonic() - started < CUT_WITHIN
        assert client.get("events?n=1").status_code == 403


# --- versions


@pytest.fixture
def scope(db):
    return Scope.objects.create(slug="versions")


def save(scope, pattern, reason="because", **fields):
    return scope_services.save_rule(
        rule=ScopeRule(scope=scope, pattern=pattern, **fields), actor=UserFactory(), reason=reason
    )


def test_every_change_makes_a_version_and_any_can_be_put_in_force_again(scope):
    first = save(scope, "a", "open a")
    second = save(scope, "b/…", "open b", method="GET")
    third = save(scope, "b/c", "close c", action="deny")
    assert [version.number for version in (first, second, third)] == [1, 2, 3]
    added, removed = changes_of(third)
    assert ([rule["pattern"] for rule in added], removed) == (["b/c"], [])

    actor = UserFactory()
    fourth = scope_services.roll_back(version_id=second.pk, actor=actor, reason="c is needed")
    assert (fourth.number, fourth.rules, fourth.created_by, fourth.reason) == (4, second.rules, actor, "c is needed")
    assert {(rule.pattern, rule.method, rule.deny) for rule in scope_rules() if rule.scope == "versions"} == {
        ("a", "", False),
        ("b/…", "GET", False),
    }
    with pytest.raises(RulesUnchanged):
        scope_services.roll_back(version_id=second.pk, actor=actor, reason="again")
    [fifth] = scope_services.remove_rules(
        rule_ids=list(ScopeRule.objects.filter(scope=scope).values_list("pk", flat=True)), actor=actor, reason="none"
    )
    assert (fifth.number, fifth.rules) == (5, [])
    assert ScopeVersion.objects.filter(scope=scope).count() == 5


def test_nothing_changes_without_a_reason(scope):
    version = save(scope, "a")
    rule = ScopeRule.objects.get(scope=scope)
    actor = UserFactory()
    for attempt in (
        lambda: save(scope, "b", " "),
        lambda: scope_services.remove_rules(rule_ids=[rule.pk], actor=actor, reason=""),
        lambda: scope_services.roll_back(version_id=version.pk, actor=actor, reason=""),
    ):
        with pytest.raises(ReasonMissing):
            attempt()
    assert ScopeVersion.objects.get(scope=scope) == version
    assert ScopeRule.objects.get(scope=scope).pattern == "a"


def test_the_database_refuses_to_rewrite_a_version(scope):
    version = save(scope, "a")
    for statement in ("UPDATE proxy_scopeversion SET reason = 'x'", "DELETE FROM proxy_scopeversion"):
        with (
            pytest.raises(ProgrammingError, match="Cannot update or delete"),
            transaction.atomic(),
            connection.cursor() as cursor,
        ):
            cursor.execute(f"{statement} WHERE id = %s", [version.pk])
    version.refresh_from_db()
    assert version.reason == "because"


def test_what_existed_before_versions_is_the_first(db):
    version = ScopeVersion.objects.get(scope_id="certificates_only", number=1)
    assert version.rules == scope_services.rules_in_force("certificates_only")
    assert len(version.rules) == 20


def test_changes_at_once_are_numbered_one_after_the_other(transactional_db):
    scope = Scope.objects.create(slug="versions")
    actor = UserFactory()

    def add(number: int) -> ScopeVersion:
        return scope_services.save_rule(
            rule=ScopeRule(scope=scope, pattern=f"p{number}"), actor=actor, reason=str(number)
        )

    made = run_at_once(6, add)
    assert sorted(version.number for version in made) == [1, 2, 3, 4, 5, 6]
    assert sorted(len(version.rules) for version in made) == [1, 2, 3, 4, 5, 6]


def test_without_the_lock_changes_at_once_collide(transactional_db, monkeypatch):
    """Negative control of the test above."""
    scope = Scope.objects.create(slug="versions")
    actor = UserFactory()
    monkeypatch.setattr(scope_services, "_lock", lambda scope_ids: None)
    rules_in_force = scope_services.rules_in_force

    everybody = threading.Barrier(4, timeout=20)

    def together(scope_id: str) -> Any:
        found = rules_in_force(scope_id)
        everybody.wait()
        return found

    monkeypatch.setattr(scope_services, "rules_in_force", together)

    def add(number: int) -> ScopeVersion:
        return scope_services.save_rule(
            rule=ScopeRule(scope=scope, pattern=f"p{number}"), actor=actor, reason=str(number)
        )

    assert any(isinstance(outcome, Exception) for outcome in run_at_once(4, add))


# --- the tester


@pytest.mark.parametrize(
    ("method", "path", "code", "deciding"),
    [
        ("GET", "certificates/filter", "", "certificates/filter"),
        ("GET", "/api/v1/proxy/certificates/filter?x=../..", "", "certificates/filter"),
        ("GET", "https://proxy.test/api/v1/proxy/certificates/details/1", "", "certificates/details/…"),
        ("GET", "certificates/filterX", "scope_forbidden", None),
        ("GET", "certificates/%2e%2e/system", "path_ambiguous", None),
        ("TRACE", "certificates/filter", "method_not_allowed", None),
        ("DELETE", "certificates/remove", "scope_forbidden", "certificates/remove"),
    ],
)
def test_the_tester_says_what_the_gateway_does(live, upstream, issue, method, path, code, deciding):
    ScopeRule.objects.create(
        scope_id="certificates_only", pattern="certificates/remove", method="DELETE", action="deny"
    )
    issued = issue(scope="certificates_only")
    raw = raw_path_of(path)
    verdict = judge(table=ScopeTable(scope_rules()), scope="certificates_only", method=method, path=raw)
    assert (verdict.code, verdict.rules[0].pattern if verdict.rules else None) == (code, deciding)
    assert verdict.reason

    wait_until(lambda: len(live.gateway._rules) == len(scope_rules()), what="the rules")
    with live.raw() as peer:
        peer.sendall(request_bytes(raw.decode("latin-1"), issued.secret, method=method))
        status, headers, _ = read_response(peer)
    assert headers.get("x-zenzefi-error", [""]) == [code]
    assert verdict.status in (None, status)
    assert len(upstream.requests) == (0 if code else 1)


@pytest.mark.django_db
def test_the_testers_page(issue):
    office = staff_client(SuperuserFactory())
    restricted = issue(scope="certificates_only")
    ended = issue(scope="full", active_for=timedelta(seconds=-5))

    def ask(**data: str) -> Any:
        return office.post(f"{RULES}tester/", {"method": "GET", "path": "certificates/filter", **data})

    def verdict(**data: str) -> Any:
        answer = ask(**data)
        assert answer.status_code == 200
        assert answer.context["form"].errors == {}
        return answer.context["verdict"]

    assert office.get(f"{RULES}tester/").status_code == 200
    assert office.get(RULES).content.decode().count("tester/") == 1
    assert verdict(scope="certificates_only").code == ""
    assert verdict(scope="full", path="../%2e").code == ""
    assert verdict(token=str(restricted.token.pk)).code == ""
    assert verdict(token=f"znz_…{restricted.token.last_four}", path="x").code == "scope_forbidden"
    assert verdict(token=str(ended.token.pk)).code == "token_expired"
    revoke_token(token_id=restricted.token.pk, actor=None, refund=False)
    assert verdict(token=restricted.token.last_four).code == "token_revoked"
    other = issue()
    other.token.owner.is_active = False
    other.token.owner.save()
    assert verdict(token=str(other.token.pk)).code == "owner_disabled"

    assert "token" in ask(token="none").context["form"].errors
    assert "scope" in ask().context["form"].errors
    type(other.token).objects.exclude(pk=other.token.pk).update(last_four=other.token.last_four)
    assert "token" in ask(token=other.token.last_four).context["form"].errors
    assert restricted.reload().activated_at is None


# --- the back office


def rows(scope):
    return list(ScopeRule.objects.filter(scope=scope).values_list("action", "method", "pattern"))


def test_staff_add_change_and_remove_rules_with_a_reason(scope):
    office = staff_client(SuperuserFactory())
    data = {"scope": scope.pk, "action": "allow", "method": "GET", "pattern": "a/b", "description": ""}
    assert office.post(f"{RULES}add/", data).status_code == 200
    assert office.post(f"{RULES}add/", {**data, "pattern": "a/../b", "reason": "x"}).status_code == 200
    assert rows(scope) == []
    assert office.post(f"{RULES}add/", {**data, "reason": "needed"}).status_code == 302
    assert office.post(f"{RULES}add/", {**data, "reason": "twice"}).status_code == 200
    rule = ScopeRule.objects.get(scope=scope)
    changed = {**data, "action": "deny", "reason": "not any more"}
    assert office.post(f"{RULES}{rule.pk}/change/", changed).status_code == 302
    assert rows(scope) == [("deny", "GET", "a/b")]
    assert office.post(f"{RULES}{rule.pk}/delete/", {"post": "yes"}).status_code == 403
    selected = {"action": "remove", "_selected_action": [str(rule.pk)]}
    assert "a/b" in office.post(RULES, selected).content.decode()
    assert rows(scope) == [("deny", "GET", "a/b")]
    office.post(RULES, {**selected, "confirm": "1", "reason": "done"})
    assert rows(scope) == []
    reasons = ScopeVersion.objects.filter(scope=scope).order_by("number").values_list("reason", flat=True)
    assert list(reasons) == ["needed", "not any more", "done"]


def test_staff_roll_back_with_their_own_permission(scope):
    first = save(scope, "a")
    second = save(scope, "b")
    selected = {"action": "roll_back", "_selected_action": [str(first.pk)], "confirm": "1", "reason": "back"}
    for permissions in (["view_scopeversion"], ["view_scopeversion", "change_scoperule"]):
        staff: Any = StaffFactory()
        staff.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        staff_client(staff).post(VERSIONS, selected)
        assert len(rows(scope)) == 2
    staff.user_permissions.add(Permission.objects.get(codename="roll_back_scopeversion"))
    client = staff_client(staff)
    page = client.get(f"{VERSIONS}{first.pk}/change/").content.decode()
    assert "+ allow * a" in page
    client.post(VERSIONS, {**selected, "_selected_action": [str(first.pk), str(second.pk)]})
    client.post(VERSIONS, {**selected, "reason": " "})
    assert len(rows(scope)) == 2
    client.post(VERSIONS, selected)
    assert rows(scope) == [("allow", "", "a")]
    client.post(VERSIONS, selected)
    assert ScopeVersion.objects.filter(scope=scope).count() == 3

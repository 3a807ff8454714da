"""A POST with an Idempotency-Key happens once."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from rest_framework.parsers import JSONParser
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from notifications.models import OutboxEvent
from notifications.services import record
from tests.factories import UserFactory
from tests.threads import run_at_once
from zenzefi.lib import clock, idempotency
from zenzefi.lib.errors import Conflict
from zenzefi.lib.idempotency import forget_old_records, run_idempotently
from zenzefi.lib.models import IdempotencyRecord

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    return UserFactory()


def post(user, key: str | None, body: dict | None = None, path: str = "/api/v1/things") -> Request:
    headers = {} if key is None else {"Idempotency-Key": key}
    wsgi = APIRequestFactory().post(path, body or {"amount": "1.00"}, format="json", headers=headers)
    request = Request(wsgi, parsers=[JSONParser()])
    request.user = user
    return request


def flow_of(user, answer: dict | None = None):
    """A flow that leaves one row each time it runs."""

    def flow():
        with transaction.atomic():
            event = record("thing.done", user, {})
        return 201, answer or {"id": str(event.pk)}

    return flow


def runs() -> int:
    return OutboxEvent.objects.count()


def test_without_a_key_every_request_counts(user):
    for _ in range(2):
        run_idempotently(post(user, None), flow_of(user))

    assert runs() == 2
    assert not IdempotencyRecord.objects.exists()


def test_the_same_request_is_answered_from_the_record(user):
    first = run_idempotently(post(user, "key"), flow_of(user))
    again = run_idempotently(post(user, "key"), flow_of(user))

    assert runs() == 1
    assert (again.status_code, again.data) == (first.status_code, first.data) == (201, first.data)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers


@pytest.mark.parametrize(
    ("body", "path"), [({"amount": "2.00"}, "/api/v1/things"), ({"amount": "1.00"}, "/api/v1/other")]
)
def test_the_key_belongs_to_one_request(user, body, path):
    run_idempotently(post(user, "key"), flow_of(user))

    with pytest.raises(idempotency.IdempotencyKeyReused):
        run_idempotently(post(user, "key", body, path), flow_of(user))

    assert runs() == 1


def test_the_order_of_names_makes_no_other_request(user):
    run_idempotently(post(user, "key", {"a": 1, "b": 2}), flow_of(user))
    run_idempotently(post(user, "key", {"b": 2, "a": 1}), flow_of(user))

    assert runs() == 1


def test_keys_of_two_users_do_not_meet(user):
    other = UserFactory()
    run_idempotently(post(user, "key"), flow_of(user))
    run_idempotently(post(other, "key", {"amount": "9.00"}), flow_of(other))

    assert runs() == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f", "tab\there", "ключ", "é"])
def test_a_malformed_key_is_refused(user, key):
    with pytest.raises(idempotency.InvalidIdempotencyKey):
        run_idempotently(post(user, key), flow_of(user))

    assert runs() == 0


@pytest.mark.parametrize("key", ["x", "x" * 255, " !~", "8e03978e-40d5-43e8-bc93-6894a57f9324"])
def test_a_well_formed_key_is_taken(user, key):
    run_idempotently(post(user, key), flow_of(user))

    assert runs() == 1


def test_a_refused_request_may_be_repeated(user):
    def refuse():
        record("thing.done", user, {})
        raise Conflict

    with pytest.raises(Conflict):
        run_idempotently(post(user, "key"), refuse)
    assert (runs(), IdempotencyRecord.objects.count()) == (0, 0)

    run_idempotently(post(user, "key"), flow_of(user))
    assert runs() == 1


def test_neither_key_nor_answer_is_stored_in_clear(user):
    secret = "znz_secret-of-a-token"
    run_idempotently(post(user, "the-callers-key"), flow_of(user, {"token": secret}))

    with connection.cursor() as cursor:
        cursor.execute("SELECT key_hash, request_hash, answer FROM lib_idempotencyrecord")
        stored = b"".join(bytes(part) for part in cursor.fetchone())
    assert secret.encode() not in stored and b"the-callers-key" not in stored
    assert run_idempotently(post(user, "the-callers-key"), flow_of(user)).data == {"token": secret}


def test_another_secret_key_runs_nothing_twice(user, settings):
    run_idempotently(post(user, "key"), flow_of(user))
    settings.SECRET_KEY = "another " * 10

    with pytest.raises(idempotency.AnswerUnreadable):
        run_idempotently(post(user, "key"), flow_of(user))

    assert runs() == 1


@pytest.mark.django_db(transaction=True)
def test_of_simultaneous_requests_one_runs():
    user = UserFactory()

    def attempt(_):
        return run_idempotently(post(user, "key"), flow_of(user))

    answers = run_at_once(12, attempt)

    assert runs() == 1
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert {type(answer) for answer in refused} <= {idempotency.RequestInFlight}
    bodies = {json.dumps(answer.data) for answer in answers if not isinstance(answer, Exception)}
    assert len(bodies) == 1


@pytest.mark.django_db(transaction=True)
def test_while_the_first_is_running_the_second_is_told():
    user = UserFactory()
    running, may_end = threading.Event(), threading.Event()

    def slow():
        running.set()
        assert may_end.wait(timeout=30)
        return flow_of(user)()

    def first():
        try:
            run_idempotently(post(user, "key"), slow)
        finally:
            connections.close_all()

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert running.wait(timeout=30)
        with pytest.raises(idempotency.RequestInFlight):
            run_idempotently(post(user, "key"), flow_of(user))
    finally:
        may_end.set()
        thread.join(timeout=30)

    assert runs() == 1
    assert run_idempotently(post(user, "key"), flow_of(user)).headers["Idempotent-Replayed"] == "true"


def test_old_records_are_forgotten(user):
    run_idempotently(post(user, "old"), flow_of(user))
    IdempotencyRecord.objects.update(created_at=clock.now() - timedelta(hours=25))
    run_idempotently(post(user, "new"), flow_of(user))

    assert forget_old_records() == 1
    run_idempotently(post(user, "new"), flow_of(user))
    assert runs() == 2

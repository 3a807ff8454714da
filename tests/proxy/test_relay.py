"""What goes through the gateway arrives as it was sent, both ways."""

from __future__ import annotations

import hashlib

from zenzefi.runtime.demo_upstream import pattern_sha256


def test_a_get_reaches_the_upstream_and_its_answer_the_client(live, upstream, issue):
    issued = issue()

    with live.client(issued.secret) as client:
        answer = client.get("system/version?a=1&a=2&b=")

    assert answer.status_code == 200
    assert answer.json()["product"] == "demo upstream"
    assert upstream.targets == [b"/system/version?a=1&a=2&b="]
    assert issued.reload().activated_at is not None


def test_ten_megabytes_come_back_as_they_went(live, issue):
    body = bytes(range(256)) * 40_000
    with live.client(issue().secret) as client:
        answer = client.post("echo", content=body)

    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(body).digest()


def test_a_large_answer_arrives_whole(live, issue):
    with live.client(issue().secret) as client, client.stream("GET", "bytes/50000000") as answer:
        digest = hashlib.sha256()
        for piece in answer.iter_bytes():
            digest.update(piece)

    assert answer.headers["content-length"] == "50000000"
    assert digest.hexdigest() == pattern_sha256(50_000_000)

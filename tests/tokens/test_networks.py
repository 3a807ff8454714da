"""The networks a token is bound to, as the service keeps them."""

from __future__ import annotations

import pytest

from tests.money import token_of_new_user, user_with
from tokens.exceptions import InvalidNetwork, TokenHeld, TooManyNetworks
from tokens.services import as_networks, claim_gift, offer_gift, release_device, update_token
from tokens.signals import credentials_changed

pytestmark = pytest.mark.django_db


@pytest.fixture
def told():
    """The digests that the gateway was told of."""
    digests: list[str] = []

    def receive(sender, **arguments):
        digests.extend(arguments["digests"])

    credentials_changed.connect(receive)
    yield digests
    credentials_changed.disconnect(receive)


def test_networks_are_kept_in_canonical_form_and_told_when_they_change(told, django_capture_on_commit_callbacks):
    token = token_of_new_user(24).token
    with django_capture_on_commit_callbacks(execute=True):
        changed = update_token(token_id=token.pk, owner=token.owner, allowed_ips=[" 10.1.2.3/8", "10.0.0.0/8", "::1"])
    assert changed.allowed_ips == ["10.0.0.0/8", "::1/128"]
    assert changed.changed_at > token.changed_at
    assert told == [token.digest]

    with django_capture_on_commit_callbacks(execute=True):
        same = update_token(token_id=token.pk, owner=token.owner, label="new", allowed_ips=["10.0.0.0/8", "::1"])
        update_token(token_id=token.pk, owner=token.owner, label="newer")
    assert (same.label, same.changed_at) == ("new", changed.changed_at)
    assert told == [token.digest]


@pytest.mark.parametrize("text", ["nonsense", "10.0.0.0/33", "fe80::1%eth0", "fe80::%eth0/64", "", "1"])
def test_what_is_no_network_is_refused(text, told):
    token = token_of_new_user(24).token
    with pytest.raises(InvalidNetwork):
        update_token(token_id=token.pk, owner=token.owner, label="new", allowed_ips=["10.0.0.0/8", text])
    token.refresh_from_db()
    assert (token.label, token.allowed_ips, told) == ("", [], [])


def test_fifty_networks_are_the_most():
    assert len(as_networks([f"10.0.0.{number}" for number in range(50)] * 2)) == 50
    with pytest.raises(TooManyNetworks):
        as_networks([f"10.0.0.{number}" for number in range(51)])


def test_releasing_another_device_leaves_the_one_that_is_known():
    token = token_of_new_user(24).token
    token.device_id = "device-one"
    token.save()
    assert release_device(token_id=token.pk, owner=token.owner, device_id="device-two").device_id == "device-one"
    assert release_device(token_id=token.pk, owner=token.owner, device_id="device-one").device_id == ""


def test_networks_of_the_giver_do_not_bind_who_claims_a_gift():
    token = token_of_new_user(24).token
    update_token(token_id=token.pk, owner=token.owner, allowed_ips=["10.0.0.0/8"])
    offered = offer_gift(token_id=token.pk, giver=token.owner)
    with pytest.raises(TokenHeld):
        update_token(token_id=token.pk, owner=token.owner, allowed_ips=[])
    # Staff may: what they change is theirs to say.
    assert update_token(token_id=token.pk, owner=None, allowed_ips=["::1"]).allowed_ips == ["::1/128"]

    claimed = claim_gift(code=offered.code, claimer=user_with("0.00"))

    assert claimed.token.allowed_ips == []
    token.refresh_from_db()
    assert token.allowed_ips == []

"""How refusals are documented."""

from __future__ import annotations

from django.utils import translation

from accounts.exceptions import UnknownReferralCode
from zenzefi.lib.schema import ErrorSerializer, error_responses


def test_causes_are_grouped_by_status_each_with_an_example():
    responses = error_responses(400, 401, UnknownReferralCode)

    assert list(responses) == [400, 401, 429, 503]
    assert [example.value["code"] for example in responses[400].examples] == [
        "validation_error",
        "parse_error",
        "unknown_referral_code",
    ]
    for response in responses.values():
        for example in response.examples:
            assert ErrorSerializer(data=example.value).is_valid()


def test_the_documentation_is_in_english_whoever_asks_first():
    with translation.override("ru"):
        responses = error_responses(404)

    assert responses[404].description == "Not found."

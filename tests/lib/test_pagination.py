"""Lists."""

from __future__ import annotations

import pytest
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from zenzefi.lib.pagination import LimitOffsetPagination


def page(query: str, rows: int = 120) -> dict:
    paginator = LimitOffsetPagination()
    request = Request(APIRequestFactory().get(f"/?{query}"))
    items = paginator.paginate_queryset(list(range(rows)), request)
    return paginator.get_paginated_response(items).data


@pytest.mark.parametrize(
    ("query", "first", "count", "limit", "offset"),
    [
        ("", 0, 50, 50, 0),
        ("limit=1", 0, 1, 1, 0),
        ("limit=100&offset=10", 10, 100, 100, 10),
        ("offset=115", 115, 5, 50, 115),
        ("limit=5&limit=7", 0, 7, 7, 0),
    ],
)
def test_a_page_within_range(query, first, count, limit, offset):
    body = page(query)

    assert body == {"items": list(range(first, first + count)), "total": 120, "limit": limit, "offset": offset}


@pytest.mark.parametrize("query", ["offset=120", "offset=121", "offset=10000000"])
def test_beyond_the_end_there_is_nothing(query):
    body = page(query)

    assert (body["items"], body["total"]) == ([], 120)


@pytest.mark.parametrize("value", ["0", "101", "-1", "", "x", "1.0", "1e1", "+1", " 1", "１", "0x1", "9" * 400, "null"])
def test_a_limit_out_of_range_is_refused(value):
    with pytest.raises(ValidationError) as refused:
        page(f"limit={value}".replace("+", "%2B").replace(" ", "%20"))

    assert list(refused.value.detail) == ["limit"]


@pytest.mark.parametrize("value", ["-1", "10000001", "", "x", "9" * 400])
def test_an_offset_out_of_range_is_refused(value):
    with pytest.raises(ValidationError) as refused:
        page(f"offset={value}")

    assert list(refused.value.detail) == ["offset"]

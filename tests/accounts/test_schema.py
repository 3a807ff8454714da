"""The accounts routes in the OpenAPI schema."""

from __future__ import annotations

from typing import Any

import pytest
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator

ROUTES = {
    ("/api/v1/auth/register", "post"): ("201", False),
    ("/api/v1/auth/login", "post"): ("200", False),
    ("/api/v1/auth/refresh", "post"): ("200", False),
    ("/api/v1/auth/logout", "post"): ("204", True),
    ("/api/v1/users/me", "get"): ("200", True),
    ("/api/v1/users/me", "patch"): ("200", True),
    ("/api/v1/users/me/sessions", "get"): ("200", True),
    ("/api/v1/users/me/sessions/{session_id}", "delete"): ("204", True),
}


@pytest.fixture(scope="module")
def schema() -> Any:
    with GENERATOR_STATS.silence():
        return SchemaGenerator().get_schema(request=None, public=True)


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_a_route_is_described(schema, path, method):
    success, signed_in = ROUTES[path, method]
    operation = schema["paths"][path][method]

    assert success in operation["responses"]
    assert operation["tags"] == ["Accounts"] and operation["summary"]
    assert ({"AccessToken": []} in operation.get("security", [])) is signed_in
    for status, response in operation["responses"].items():
        if status >= "400":
            assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
            assert response["content"]["application/json"]["examples"]
    assert {"429", "503"} <= operation["responses"].keys()


def test_the_scheme_is_a_bearer_token(schema):
    scheme = schema["components"]["securitySchemes"]["AccessToken"]

    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")

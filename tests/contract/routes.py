"""Every operation of the API, read from its own OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from drf_spectacular.generators import SchemaGenerator


@dataclass(frozen=True)
class Operation:
    """``path`` is a template: ``/api/v1/tokens/{token_id}``. ``body`` is the JSON schema of the body, if it has one."""

    method: str
    path: str
    body: dict[str, Any] | None
    query: tuple[str, ...]
    parameters: tuple[str, ...]
    statuses: frozenset[int]
    public: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def url(self, identifier: object = "00000000-0000-4000-8000-000000000000") -> str:
        path = self.path
        for name in self.parameters:
            path = path.replace(f"{{{name}}}", str(identifier))
        return path


def _read() -> Iterator[Operation]:
    schema = SchemaGenerator().get_schema(request=None, public=True)
    for path, methods in schema["paths"].items():
        if "/proxy/" in path:
            continue
        for method, described in methods.items():
            content = described.get("requestBody", {}).get("content", {}).get("application/json")
            body = None
            if content is not None:
                body = content["schema"]
                if "$ref" in body:
                    body = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]
            parameters = described.get("parameters", ())
            yield Operation(
                method.upper(),
                path,
                body,
                tuple(p["name"] for p in parameters if p["in"] == "query"),
                tuple(p["name"] for p in parameters if p["in"] == "path"),
                frozenset(map(int, described["responses"])),
                "401" not in described["responses"] or path in ("/api/v1/auth/login", "/api/v1/auth/refresh"),
            )


def operations() -> list[Operation]:
    """Return every operation but the gateway's."""
    return list(_read())


def is_for_users(operation: Operation) -> bool:
    """Whether users and staff call it: payment providers send what they like and are not limited as users are."""
    return "/webhooks/" not in operation.path


def is_for_staff(operation: Operation) -> bool:
    return "/admin/" in operation.path or (operation.path.startswith("/api/v1/bundles") and operation.method != "GET")

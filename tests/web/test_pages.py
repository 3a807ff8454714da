"""Front page and API documentation: complete, in both languages, from this server alone."""

from __future__ import annotations

import asyncio
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from django.conf import settings as project
from django.contrib.staticfiles import finders
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.test import Client
from django.urls import NoReverseMatch, get_resolver
from drf_spectacular.validation import validate_schema

from tests.factories import SuperuserFactory, UserFactory

PAGES = ["/", "/docs", "/redoc"]


class Document(HTMLParser):
    """What a page loads, where it leads, and what of it a strict policy would have to allow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.inline_scripts = 0
        self.nonces: list[str] = []
        self.style_attributes = 0
        self.handlers = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "a":
            self.links.append(attributes["href"] or "")
        elif tag == "link":
            self.loaded.append(attributes["href"] or "")
        elif tag in {"script", "img"} and attributes.get("src"):
            self.loaded.append(attributes["src"] or "")
        elif tag == "script":
            self.inline_scripts += 1
        elif tag == "style":
            self.nonces.append(attributes.get("nonce") or "")
        self.style_attributes += "style" in attributes
        self.handlers += any(name.startswith("on") for name in attributes)


def directives(policy: str) -> dict[str, str]:
    return dict(part.strip().partition(" ")[::2] for part in policy.split(";"))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_nothing_from_elsewhere(client: Client, path):
    answer = client.get(path)

    assert answer.status_code == 200
    document = Document(answer.text)
    assert document.loaded
    for address in document.loaded:
        assert address.startswith(project.STATIC_URL)
        assert finders.find(address.removeprefix(project.STATIC_URL)), address


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_its_policy(client: Client, path):
    answer = client.get(path)

    policy = directives(answer["Content-Security-Policy"])
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "'unsafe-inline'" not in policy.get("script-src", "")
    assert not re.search(r"https?:", answer["Content-Security-Policy"])
    document = Document(answer.text)
    assert document.inline_scripts == document.handlers == document.style_attributes == 0
    for nonce in document.nonces:
        assert policy["style-src"] == f"'nonce-{nonce}'"


def test_a_nonce_is_used_once(client: Client):
    assert Document(client.get("/").text).nonces != Document(client.get("/").text).nonces


@pytest.mark.django_db
def test_the_front_page_leads_where_something_is(client: Client):
    links = Document(client.get("/").text).links

    assert {"/docs", "/redoc", "/admin/", "/health", "/openapi.json"} <= set(links)
    for link in links:
        assert client.get(link, follow=True).status_code in {200, 503}, link


def test_the_first_steps_are_for_this_address(client: Client):
    text = client.get("/", headers={"host": "localhost:8123"}).text

    assert "curl http://localhost:8123/api/v1/tokens/prices" in text


def test_without_mock_payments_the_page_offers_none(client: Client, settings):
    assert "/currency/mock-purchase" in client.get("/").text

    settings.PAYMENT_PROVIDERS = []

    assert "/currency/mock-purchase" not in client.get("/").text


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("application/json", True),
        ("application/json, text/html;q=0.5", True),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_the_front_page_is_json_for_programs(client: Client, accept, is_json):
    answer = client.get("/", headers={"accept": accept})

    assert answer.status_code == 200
    assert {"Accept", "Accept-Language"} <= {name.strip() for name in answer["Vary"].split(",")}
    if is_json:
        assert answer.json() == {
            "message": "Zenzefi Proxy Platform",
            "version": project.SPECTACULAR_SETTINGS["VERSION"],
            "docs": "/docs",
        }
    else:
        assert answer["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("path", [*PAGES, "/openapi.json", "/api/schema", "/favicon.ico"])
def test_pages_are_read_only(client: Client, path):
    assert client.head(path).status_code == 200
    refused = client.post(path)
    assert refused.status_code == 405
    assert refused.json()["code"] == "method_not_allowed"


def test_the_icon(client: Client):
    answer = client.get("/favicon.ico")

    assert answer["Content-Type"] == "image/x-icon"
    assert answer.content[:4] == b"\x00\x00\x01\x00"


# --- OpenAPI


def test_the_schema_is_valid_and_whole(client: Client):
    schema = client.get("/openapi.json").json()

    validate_schema(schema)
    assert schema["info"]["title"] == "Zenzefi Proxy Platform"
    assert {"/api/v1/tokens/purchase", "/api/v1/currency/balance", "/health"} <= set(schema["paths"])
    used = {tag for path in schema["paths"].values() for call in path.values() for tag in call["tags"]}
    assert used <= {tag["name"] for tag in schema["tags"]}


@pytest.mark.parametrize(
    ("query", "accept", "form"),
    [
        ("", "*/*", "json"),
        ("", "application/json", "json"),
        ("", "application/yaml", "yaml"),
        ("?format=yaml", "*/*", "yaml"),
        ("?format=json", "application/yaml", "json"),
    ],
)
def test_the_schema_comes_in_both_forms(client: Client, query, accept, form):
    answer = client.get(f"/api/schema{query}", headers={"accept": accept})

    assert answer["Content-Type"] == f"application/{form}"
    parsed = json.loads(answer.content) if form == "json" else yaml.safe_load(answer.content)
    assert parsed["openapi"].startswith("3.")


def test_the_schema_knows_no_third_form(client: Client):
    assert client.get("/api/schema?format=xml").status_code == 404


def test_the_schema_is_generated_without_a_warning():
    call_command("spectacular", validate=True, fail_on_warn=True, file="/dev/null", stdout=io.StringIO())


@pytest.mark.parametrize("path", PAGES[1:])
def test_the_documentation_reads_the_schema_from_here(client: Client, path):
    assert 'data-schema="/openapi.json"' in client.get(path).text


@pytest.mark.parametrize("path", ["/docs/", "/redoc/", "/health/", "/openapi.json/"])
def test_a_trailing_slash_is_optional(client: Client, path):
    assert client.get(path).status_code == 200


def test_every_route_of_the_api_is_in_the_schema(client: Client):
    documented = {re.sub(r"{[^}]*}", "{}", path) for path in client.get("/openapi.json").json()["paths"]}
    routes: set[str] = set()

    def collect(resolver, prefix: str) -> None:
        for entry in resolver.url_patterns:
            route = prefix + str(entry.pattern)
            if hasattr(entry, "url_patterns"):
                collect(entry, route)
            elif route.startswith("api/v1/"):
                routes.add("/" + re.sub(r"<[^>]*>", "{}", route))

    try:
        collect(get_resolver(), "")
    except NoReverseMatch as exc:  # pragma: no cover
        pytest.fail(str(exc))
    assert routes
    assert routes - documented == set()


# --- Static files


def content_of(path: str) -> bytes:
    found = finders.find(path)
    assert found is not None
    return Path(found).read_bytes()


@pytest.mark.parametrize("path", ["zenzefi/docs.js", "drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"])
def test_a_static_file_is_served_whole(client: Client, path):
    content = content_of(path)

    answer = client.get(f"/static/{path}")

    assert answer.content == content
    assert "javascript" in answer["Content-Type"]
    assert client.get(f"/static/{path}", HTTP_IF_MODIFIED_SINCE=answer["Last-Modified"]).status_code == 304
    part = client.get(f"/static/{path}", HTTP_RANGE="bytes=10-19")
    assert (part.status_code, part.content) == (206, content[10:20])
    head = client.head(f"/static/{path}")
    assert (head["Content-Length"], head.content) == (str(len(content)), b"")


def test_a_static_file_that_is_not_there(client: Client):
    assert client.get("/static/zenzefi/none.js").status_code == 404
    assert client.get("/static/../settings/base.py").status_code == 404


def test_static_files_do_not_warn_under_asgi():
    async def fetch() -> bytes:
        transport = httpx.ASGITransport(cast(Any, get_asgi_application()))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return (await client.get("/static/zenzefi/docs.js")).content

    assert asyncio.run(fetch()) == content_of("zenzefi/docs.js")


# --- Back office


@pytest.mark.django_db
def test_the_back_office_lists_people_first(client: Client):
    client.force_login(SuperuserFactory())

    answer = client.get("/admin/")

    labels = [app["app_label"] for app in answer.context["available_apps"]]
    assert labels[:3] == ["accounts", "wallet", "tokens"]
    assert labels[-1] == "auth"
    assert "Zenzefi back office" in answer.text
    assert "Django administration" not in answer.text


@pytest.mark.django_db
def test_the_back_office_is_for_staff(client: Client):
    client.force_login(UserFactory())

    assert client.get("/admin/").status_code == 302

"""Pages in a real browser: they render, in both languages, and no script or resource of theirs fails."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Browser
from tests.e2e.stack import Stack, wait_until

pytestmark = [pytest.mark.chromium, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.forget()
    return chromium


def sign_in(browser: Browser, stack: Stack) -> None:
    """Sign the seeded administrator in through the form."""
    match = re.search(r"Admin\s+(\S+@\S+)\s+(\S+)", stack.output())
    assert match is not None, "the first start printed no administrator"
    browser.open(f"{stack.url}/admin/login/?next=/admin/")
    browser.run(f"document.querySelector('[name=username]').value = {json.dumps(match[1])}")
    browser.run(f"document.querySelector('[name=password]').value = {json.dumps(match[2])}")
    browser.run("document.querySelector('form').submit()")
    browser.wait_for_element("#logout-form")


@pytest.mark.parametrize(
    ("path", "text"),
    [("/", "Zenzefi"), ("/docs", "/api/v1/tokens/purchase"), ("/redoc", "Register"), ("/admin/", "Password")],
)
def test_a_page_renders_without_errors(stack: Stack, browser: Browser, path: str, text: str):
    browser.open(f"{stack.url}{path}")

    browser.wait_for(text)
    assert browser.errors == []


def test_the_front_page_speaks_russian(stack: Stack, tmp_path: Path):
    with Browser(tmp_path / "profile", language="ru") as browser:
        browser.open(f"{stack.url}/")

        assert browser.run("document.documentElement.lang") == "ru"
        assert re.search(r"[а-я]{4}", browser.text())


def test_staff_see_a_sold_token_and_revoke_it_with_a_reason(stack: Stack, browser: Browser):
    customer = stack.customer()
    bought = customer.buy()
    sign_in(browser, stack)

    browser.open(f"{stack.url}/admin/tokens/accesstoken/")
    browser.wait_for(bought["token_hint"])
    assert bought["token"] not in browser.run("document.documentElement.outerHTML")

    browser.run(f"document.querySelector('input.action-select[value=\"{bought['id']}\"]').click()")
    browser.run("document.querySelector('select[name=action]').value = 'revoke_with_refund'")
    browser.run("document.querySelector('#changelist-form').submit()")
    browser.wait_for_element("[name=reason]")
    browser.run("document.querySelector('[name=reason]').value = 'Asked for by phone'")
    browser.run("document.querySelector('[name=confirm]').click()")

    wait_until(
        lambda: customer.get(f"/tokens/{bought['id']}")["status"] == "revoked", seconds=60, what="the token is revoked"
    )
    assert customer.balance() == "100.00"
    assert customer.proxied(bought["token"], "json").status_code == 401
    assert browser.errors == []


@pytest.mark.parametrize(
    "path",
    [
        "accounts/user/",
        "accounts/signinsession/",
        "wallet/account/",
        "wallet/transfer/",
        "tokens/accesstoken/",
        "tokens/tokenprice/",
        "tokens/scope/",
        "bundles/bundle/",
        "proxy/session/",
        "notifications/outboxevent/",
    ],
)
def test_a_list_of_the_back_office_renders(stack: Stack, browser: Browser, path: str):
    token = stack.customer().buy()["token"]
    assert stack.customer().proxied(token, "json").status_code == 200
    sign_in(browser, stack)

    browser.open(f"{stack.url}/admin/{path}")

    assert browser.run("document.querySelector('#changelist') !== null")
    assert browser.errors == []

"""A client of the JSON API that asserts the status itself."""

from __future__ import annotations

import json
from typing import Any

from django.http import HttpResponse
from rest_framework.test import APIClient

from accounts import access_tokens
from accounts.models import SignInSession
from accounts.services import SignedIn, sign_in
from tests.factories import PASSWORD

_EXPECTED = {"get": 200, "post": 200, "put": 200, "patch": 200, "delete": 204, "options": 200}


class Api:
    """Calls routes below ``/api/v1/`` and returns the parsed body; ``last`` is the whole answer.

    The status must be the expected one. Every refusal must have the shape that all refusals have; ``code`` is
    compared with its code.
    """

    def __init__(self, user: Any | None = None, *, address: str = "127.0.0.1") -> None:
        self.client = APIClient(raise_request_exception=True, REMOTE_ADDR=address)
        self.last: HttpResponse
        if user is not None:
            self.sign_in(user)

    def sign_in(self, user: Any, password: str = PASSWORD) -> SignedIn:
        """Open a session as the login route does, without its rate limit."""
        signed_in = sign_in(email=user.email, password=password)
        self.use(signed_in.access_token)
        return signed_in

    def use(self, access_token: str) -> None:
        self.client.credentials(HTTP_AUTHORIZATION=f"Bearer {access_token}")

    def use_session(self, session: SignInSession) -> None:
        self.use(access_tokens.issue(session))

    def get(self, path: str, query: dict[str, Any] | None = None, **options: Any) -> Any:
        return self._call("get", path, query, **options)

    def post(self, path: str, data: Any = None, **options: Any) -> Any:
        return self._call("post", path, data, **options)

    def put(self, path: str, data: Any = None, **options: Any) -> Any:
        return self._call("put", path, data, **options)

    def patch(self, path: str, data: Any = None, **options: Any) -> Any:
        return self._call("patch", path, data, **options)

    def delete(self, path: str, data: Any = None, **options: Any) -> Any:
        return self._call("delete", path, data, **options)

    def _call(
        self,
        method: str,
        path: str,
        data: Any = None,
        *,
        status: int | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """``data`` that is ``bytes`` goes out as it is, with ``content_type``; anything else as JSON."""
        if status is None:
            status = _EXPECTED[method]
        if method != "get":
            body = data if isinstance(data, bytes) else json.dumps(data if data is not None else {}, default=str)
            response = getattr(self.client, method)(
                f"/api/v1/{path}", body, content_type=content_type, headers=headers or {}
            )
        else:
            response = self.client.get(f"/api/v1/{path}", data or {}, headers=headers or {})
        self.last = response
        assert response.status_code == status, f"{response.status_code}: {response.content.decode()[:2000]}"
        assert response["X-Request-ID"]
        parsed: Any = json.loads(response.content) if response.content else None
        if status >= 400:
            assert isinstance(parsed, dict)
            assert set(parsed) - {"errors"} == {"detail", "code", "request_id"}, parsed
            assert parsed["detail"] and parsed["request_id"] == response["X-Request-ID"]
            assert code is None or parsed["code"] == code, parsed
        return parsed

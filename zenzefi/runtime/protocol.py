"""HTTP/1.1 as the server speaks it: uvicorn's, with a bounded head and refusals in the API's own form."""

from __future__ import annotations

import json
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from zenzefi.runtime.strictness import handshake_fault, is_good_request_line

#: Bytes of a request's head, its first line and its fields, that are waited for. Nothing else bounds them.
HEAD_MAX_BYTES = 64 * 1024
#: A head that arrives at once is parsed before it is counted, and each field costs time wherever it is looked at.
FIELDS_MAX = 200

#: Seconds in which what a refused client still sends is thrown away. Closing on unread bytes resets the connection,
#: and the answer with it (RFC 9112 §9.6).
LINGER_SECONDS = 1.0

_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses with 431 (RFC 6585 §5) a head above :data:`HEAD_MAX_BYTES` or :data:`FIELDS_MAX` fields."""

    _head_bytes = 0
    _in_head = True
    _refused = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_MAX_BYTES:
            self._refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer. It comes after the decision about the request and must not look like a part of its head.
            return
        super().on_header(name, value)
        if len(self.headers) > FIELDS_MAX or len(name) + len(value) > HEAD_MAX_BYTES:
            self._refuse(431)
            # Stops the parser, which reports it as malformed; by then it is refused.
            raise ValueError("too many header fields")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if not is_good_request_line(self.url, self.parser.get_http_version(), self.headers):
            self._refuse(400)
            raise ValueError("a request line that is not acted on")
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        version = self.scope["http_version"]
        if handshake_fault(self.scope["method"], version, self.headers):
            self._refuse(400)
            return
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400)

    def _refuse(self, status: int) -> None:
        """Answer and close. Nothing of the request can be believed, so neither its id nor its language is used."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        request_id = uuid.uuid4().hex
        too_large = status == 431
        refusal: dict[str, Any] = {
            "detail": "The request's header fields are too large." if too_large else "The request is malformed.",
            "code": "header_fields_too_large" if too_large else "bad_request",
            "request_id": request_id,
        }
        body = json.dumps(refusal).encode()
        head = (
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-request-id: %b\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head % (status, _REASONS[status], len(body), request_id.encode()) + body)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            # The malformed part is a body; the application that reads it must see the client gone.
            self.transport.close()

"""Refuse every request that is not from the page of this server.

A page of another site may send requests to loopback, by its address or by a name that it points
there (DNS rebinding). It cannot send the token, because the token is in no cookie: the page keeps
it in memory and sends it in a header, which no other origin may do.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API_PREFIX = "/api/"
_TOKEN_BYTES = 32
_HOST_NAMES: Final = frozenset({"127.0.0.1", "localhost"})
"""Names that no other server can point here. Any port: a forwarded port has its own number."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})

_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), display-capture=()",
    "cache-control": "no-store",
}


class BodyTooLargeError(Exception):
    """A request body exceeds the limit."""


def new_token() -> str:
    """Return a random token for one start of the server."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


class AccessControl:
    """ASGI middleware that checks each request before the application gets it.

    Host must be a name of loopback, Origin that of this server, the token valid for each address
    under ``/api/``, and the body within the limit. A refusal has an empty body.

    Args:
        app: The application.
        token: See :func:`new_token`.
        most_body_bytes: Largest request body.
    """

    def __init__(self, app: ASGIApp, *, token: str, most_body_bytes: int) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._most_body_bytes = most_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: the application has none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        status = self._refusal(scope)
        if status:
            await Response(status_code=status)(scope, receive, send_with_headers)
            return
        await self._app(scope, self._limited(receive), send_with_headers)

    def _refusal(self, scope: Scope) -> int:
        """Return the status of a refusal; 0: the request is valid."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not _is_loopback(hosts[0]):
            return 421
        if scope["method"] not in _METHODS:
            return 405
        if any(origin != f"http://{hosts[0]}" for origin in headers.getlist("origin")):
            return 403
        is_api = scope["path"].startswith(API_PREFIX)
        is_opened = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        # A link to the page may be anywhere; all other requests of another site are refused.
        if headers.get("sec-fetch-site", "same-origin") in {"cross-site", "same-site"} and (
            is_api or not is_opened
        ):
            return 403
        if is_api:
            given = headers.getlist("authorization")
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(), self._expected):
                return 401
        try:
            if int(headers.get("content-length", "0")) > self._most_body_bytes:
                return 413
        except ValueError:
            return 400
        return 0

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_body_bytes:  # a chunked body has no length in advance
                raise BodyTooLargeError
            return message

        return limited


def _is_loopback(host: str) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname in _HOST_NAMES and parts.port != 0 and "@" not in host
    except ValueError:
        return False

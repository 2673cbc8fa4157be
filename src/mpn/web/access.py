"""Refuse requests without the token, of other sites, and with too large bodies.

A page of another site may send requests to loopback, by its address or by a name that it points
there (DNS rebinding). It cannot send the token, because the token is in no cookie: a client sends
it in a header, which no other origin may do.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOKEN_BYTES = 32
LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost"})
"""Names that no other server can point here. Any port: a forwarded port has its own number."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})
_DETAILS: Final = {
    400: "the header Content-Length is no number",
    401: "the token is missing or wrong: send the header Authorization: Bearer TOKEN",
    403: "the request is from a page of another site",
    405: "this method is not served",
    413: "the request body is too large",
    421: "the host of the request is not this server",
}

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

_PATIENCE_S = 30.0
_LEAST_BYTES_PER_S = 16 << 10
"""A body may take this time, and one second more for each so many bytes of it that arrived."""


class BodyTooLargeError(HTTPException):
    """A request body exceeds the limit."""

    def __init__(self) -> None:
        super().__init__(413, _DETAILS[413])


class BodyTooSlowError(HTTPException):
    """A request body takes too long."""

    def __init__(self) -> None:
        super().__init__(408, "the request body takes too long")


def new_token() -> str:
    """Return a random token for one start of the server."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


class AccessControl:
    """ASGI middleware that checks each request before the application gets it.

    Host must be a name of this server, Origin that of this server, the token valid for each path
    that needs it, and the body within its limits of size and time. A refusal is JSON, ``detail``
    with one line that does not depend on the request.

    Args:
        app: The application.
        token: See :func:`new_token`.
        needs_token: Return whether a path needs the token. Other paths are for links to a page:
            another site may open them, and nothing else.
        most_body_bytes: Return the largest body of a path.
        hosts: Names of this server in the header Host; None: any.
        patience_s: Time for a body of no bytes, in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        needs_token: Callable[[str], bool],
        most_body_bytes: Callable[[str], int],
        hosts: frozenset[str] | None = LOOPBACK_NAMES,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._needs_token, self._most_body_bytes = needs_token, most_body_bytes
        self._hosts, self._patience_s = hosts, patience_s

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
            headers: Mapping[str, str] = {
                401: {"www-authenticate": "Bearer"},
                405: {"allow": ", ".join(sorted(_METHODS))},
            }.get(status, {})
            refusal = JSONResponse({"detail": _DETAILS[status]}, status, headers=headers)
            await refusal(scope, receive, send_with_headers)
            return
        limited = self._limited(receive, self._most_body_bytes(scope["path"]))
        await self._app(scope, limited, send_with_headers)

    def _refusal(self, scope: Scope) -> int:
        """Return the status of a refusal; 0: the request is valid."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return 421
        if scope["method"] not in _METHODS:
            return 405
        if any(origin != f"{scope['scheme']}://{hosts[0]}" for origin in headers.getlist("origin")):
            return 403
        is_protected = self._needs_token(scope["path"])
        is_opened = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        # A link to the page may be anywhere; all other requests of another site are refused.
        if headers.get("sec-fetch-site", "same-origin") in {"cross-site", "same-site"} and (
            is_protected or not is_opened
        ):
            return 403
        if is_protected:
            given = headers.getlist("authorization")
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(), self._expected):
                return 401
        try:
            if int(headers.get("content-length", "0")) > self._most_body_bytes(scope["path"]):
                return 413
        except ValueError:
            return 400
        return 0

    def _is_own(self, host: str) -> bool:
        if self._hosts is None:
            return True
        try:
            parts = urlsplit(f"//{host}")
            return parts.hostname in self._hosts and parts.port != 0 and "@" not in host
        except ValueError:
            return False

    def _limited(self, receive: Receive, most_bytes: int) -> Receive:
        received, is_complete, began_s = 0, False, None

        async def limited() -> Message:
            nonlocal received, is_complete, began_s
            if is_complete:  # waits for the end of the connection, which has no limit
                return await receive()
            loop = asyncio.get_running_loop()
            began_s = loop.time() if began_s is None else began_s
            try:
                async with asyncio.timeout_at(
                    began_s + self._patience_s + received / _LEAST_BYTES_PER_S
                ):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlowError from None
            received += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if received > most_bytes:  # a chunked body has no length in advance
                raise BodyTooLargeError
            return message

        return limited

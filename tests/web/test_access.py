"""Limits of bodies; tests/studio/test_access.py has the refusals of requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mpn.web.access import AccessControl, BodyTooSlowError

TOKEN = "token-of-the-tests"


async def count_bytes(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(str(len(body)))(scope, receive, send)


def put(
    parts: list[bytes], *, ends: bool, patience_s: float = 30, method: str = "PUT"
) -> list[Any]:
    """Send the parts of a body, and return the messages of the response."""
    app = AccessControl(
        count_bytes,
        token=TOKEN,
        needs_token=lambda path: True,
        most_body_bytes=lambda path: 10,
        patience_s=patience_s,
    )
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if ends:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]
    scope = {"type": "http", "method": method, "path": "/", "scheme": "http", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent


def test_other_methods_are_refused_with_those_allowed() -> None:
    start, body = put([], ends=True, method="PATCH")[:2]
    assert start["status"] == 405
    assert (b"allow", b"DELETE, GET, HEAD, POST, PUT") in start["headers"]
    assert body["body"] == b'{"detail":"this method is not served"}'


def test_slow_body_is_given_up() -> None:
    """The control is the same body with its end."""
    assert put([b"abc", b"de"], ends=True)[1]["body"] == b"5"
    with pytest.raises(BodyTooSlowError):
        put([b"abc", b"de"], ends=False, patience_s=0.05)

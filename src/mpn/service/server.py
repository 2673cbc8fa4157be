"""Serve until a signal: then finish and save the sessions, and end."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import h11
import uvicorn
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from mpn._common.files import output_errors
from mpn._common.memory import limit_arenas
from mpn.errors import InputError, OutputError
from mpn.runtime.media.decoder import limit_pixels
from mpn.runtime.options import PipelineOptions
from mpn.service.app import create_app
from mpn.service.engines import ServerEngines
from mpn.service.limits import Limits
from mpn.service.sessions import Sessions
from mpn.web.access import LOOPBACK_NAMES, new_token

TOKEN_VARIABLE: Final = "MPN_SERVE_TOKEN"
TOKEN_NAME: Final = "token"
_SHORTEST_TOKEN = 16
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_HEADER_TIMEOUT_S = 10.0
_ARENAS = 2
_CLOSE_WITHIN_S = 3


class _Protocol(H11Protocol):
    """HTTP with a time limit for the headers of a request."""

    _headers_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_headers()
        elif self._headers_due is None:
            self._expect_headers()

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(_HEADER_TIMEOUT_S, self._give_up)

    def _forget_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _give_up(self) -> None:
        self._headers_due = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()


class ServiceServer(uvicorn.Server):
    """Server whose first signal finishes the sessions; the second ends it at once.

    While the sessions are finished it still serves requests, and refuses new work with 503.

    Args:
        config: Of uvicorn.
        sessions: The sessions.
    """

    def __init__(self, config: uvicorn.Config, sessions: Sessions) -> None:
        super().__init__(config)
        self._sessions = sessions
        self._stopping: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT or SIGTERM."""
        if self._stopping is not None:
            super().handle_exit(sig, frame)
        else:
            self.stop()

    def stop(self) -> None:
        """Finish the sessions and end, as after SIGTERM; returns at once."""
        self._stopping = threading.Thread(target=self._finish, name="mpn-shutdown", daemon=True)
        self._stopping.start()

    def _finish(self) -> None:
        try:
            self._sessions.drain()
            self._sessions.finish()
        finally:
            self.should_exit = True


def make_server(
    sessions: Sessions, *, token: str, hosts: frozenset[str] | None = LOOPBACK_NAMES
) -> ServiceServer:
    """Return a server that is not started.

    Args:
        sessions: The sessions.
        token: Token of the clients.
        hosts: See :class:`mpn.web.access.AccessControl`.
    """
    config = uvicorn.Config(
        create_app(sessions, token=token, hosts=hosts),
        http=_Protocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_CLOSE_WITHIN_S,
        lifespan="off",
        ws="none",
    )
    return ServiceServer(config, sessions)


def token_for(token_file: Path | None, root: Path) -> tuple[str, str]:
    """Return the token, and a sentence that states its source.

    Args:
        token_file: File with the token; None for the environment, and else a random one.
        root: Folder of the sessions, where a random token is written for this user only.

    Raises:
        InputError: If the token is too short or cannot be sent in a header.
        OutputError: If a random one cannot be written.
    """
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"the token file {token_file} cannot be read as ASCII text") from error
        return _checked(token, f"the token in {token_file}"), f"the token is that of {token_file}"
    if (token := os.environ.get(TOKEN_VARIABLE, "")) != "":
        return _checked(token, f"the token in {TOKEN_VARIABLE}"), (
            f"the token is that of {TOKEN_VARIABLE}"
        )
    token, path = new_token(), root / TOKEN_NAME
    with output_errors(path):
        path.unlink(missing_ok=True)  # of a server that was killed
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(token)
    return token, f"the token is in {path}"


def _checked(token: str, name: str) -> str:
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise InputError(
            f"{name} must have at least {_SHORTEST_TOKEN} printable ASCII characters, for example "
            f"{secrets.token_urlsafe(3)}... of `openssl rand -hex 32`"
        )
    return token


def _bind(listener: socket.socket, host: str, port: int) -> None:
    try:
        listener.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OutputError(
                f"port {port} of {host} is in use by another program: choose another with --port"
            ) from error
        raise OutputError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}"
        ) from error


def serve(
    root: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    allows_remote: bool = False,
    token_file: Path | None = None,
    engine_dir: str | Path | None = None,
    options: PipelineOptions | None = None,
    threads: int = 1,
    limits: Limits | None = None,
    on_ready: Callable[[str, str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; the sessions are then finished and saved.

    Args:
        root: Folder of the sessions.
        host: Address to bind.
        port: Port; 0 for a free one.
        allows_remote: Whether ``host`` may be an address that other machines reach.
        token_file: See :func:`token_for`.
        engine_dir: See :func:`mpn.engines.directory.locate.local_engine_dir`.
        options: Options of all pipelines.
        threads: See :class:`mpn.service.engines.ServerEngines`.
        limits: The limits.
        on_ready: Called with the address, and the sentence about the token.

    Raises:
        InputError: If the address or the token cannot be used.
        EngineError: If the engines cannot be opened.
        OutputError: If the folder or the port cannot be used.
        KeyboardInterrupt: After the second signal.
    """
    limits = Limits() if limits is None else limits
    is_loopback = host in _LOOPBACK
    if not is_loopback and not allows_remote:
        raise InputError(
            f"{host} can be reached by other machines, without encryption: add --allow-remote, "
            "and a proxy with TLS before it"
        )
    limit_pixels(limits.pixels)
    limit_arenas(_ARENAS)
    # Images over half of the limit; those over the limit raise.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        ServerEngines(engine_dir, options or PipelineOptions(), threads=threads) as engines,
        socket.socket(family, socket.SOCK_STREAM) as listener,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listener, host, port)
        sessions = Sessions(root, engines, limits)
        try:
            token, source = token_for(token_file, root)
            hosts = LOOPBACK_NAMES | {"::1"} if is_loopback else None
            server = make_server(sessions, token=token, hosts=hosts)
            shown = f"[{host}]" if ":" in host else host
            listener.listen()  # clients may connect from here on
            on_ready(f"http://{shown}:{listener.getsockname()[1]}", source)
            server.run(sockets=[listener])
        finally:
            if token_file is None:
                (root / TOKEN_NAME).unlink(missing_ok=True)
            sessions.close()

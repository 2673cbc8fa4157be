"""Serve the studio on loopback until it is stopped."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from mpn._common.files import output_errors
from mpn.runtime.media.random_access import FrameAccess
from mpn.studio.app import Studio, create_app
from mpn.studio.frames import FrameReader
from mpn.studio.project import Project
from mpn.web.access import new_token

LOOPBACK = "127.0.0.1"
_CLOSE_WITHIN_S = 3


class _Server(uvicorn.Server):
    """Server that ends the event streams first, which otherwise never end."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self._studio = studio

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._studio.events.close()
        super().handle_exit(sig, frame)


def serve(
    video: str,
    out: Path | None,
    *,
    port: int = 0,
    engine_dir: Path | None = None,
    opens_browser: bool = True,
    on_ready: Callable[[str, Path], None],
) -> None:
    """Serve the studio until SIGINT, SIGTERM or SIGHUP.

    Args:
        video: See :func:`mpn.runtime.media.video.open_video`.
        out: Output folder; None for ``<name of the video>-mpn``.
        port: Port on loopback; 0 for a free one.
        engine_dir: Engines of the runs; None for those of the package.
        opens_browser: Whether to open the page in the user's browser.
        on_ready: Called with the address of the page, and the output folder.

    Raises:
        InputError: If the video cannot be used.
        OutputError: If the output folder or the port cannot be used.
        KeyboardInterrupt: When it is stopped; everything is saved then.
    """
    token = new_token()
    with (
        FrameAccess(video) as access,
        Project(video, access, out) as project,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with output_errors(Path(f"{LOOPBACK}:{port}")):
            listener.bind((LOOPBACK, port))
        studio = Studio(project, FrameReader(access), engine_dir=engine_dir)
        try:
            config = uvicorn.Config(
                create_app(studio, token=token),
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_CLOSE_WITHIN_S,
                ws="none",
            )
            # The part after # stays in the browser: it is in no request and no log.
            address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/#{token}"
            listener.listen()  # the page may be opened from here on
            on_ready(address, project.out)
            if opens_browser:
                webbrowser.open(address)
            _Server(config, studio).run(sockets=[listener])
        finally:
            studio.close()

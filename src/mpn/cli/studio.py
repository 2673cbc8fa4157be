"""Define the ``mpn studio`` command."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from mpn.cli.output import echo


def studio(
    video: str = typer.Argument(
        metavar="VIDEO",
        help="A video file, a folder of images, or a pattern such as 'frames/%05d.jpg'.",
    ),
    out: Path = typer.Option(
        None,
        "--out",
        "-o",
        metavar="OUT",
        help="Folder of masks and results. An earlier one is continued.",
        show_default="<video>-mpn",
    ),
    engine_dir: str = typer.Option(
        None,
        metavar="DIR",
        help="Use these engines of mpn-export: a folder, zip file or address.",
        show_default="the installed weights",
    ),
    port: int = typer.Option(
        0, metavar="N", min=0, max=65535, help="Port on this machine.", show_default="a free one"
    ),
    browser: bool = typer.Option(
        True, "--browser/--no-browser", help="Open the page in your browser."
    ),
) -> None:
    """Draw masks in the browser, run, correct and run again.

    The page is served to this machine only, at the printed address. Everything is saved in OUT,
    which mpn-run understands too.
    """
    from mpn.errors import import_or_explain

    for module in ("fastapi", "uvicorn"):
        import_or_explain(module, extra="studio", purpose="mpn studio")
    from mpn.engines.directory.locate import local_engine_dir
    from mpn.studio.server import serve

    directory = local_engine_dir(engine_dir)

    def print_address(address: str, folder: Path) -> None:
        echo(address)
        echo(f"saves to {folder}; stop with Ctrl-C", err=True)

    try:
        serve(
            video if os.path.exists(video) else os.path.expanduser(video),
            out,
            port=port,
            engine_dir=None if engine_dir is None else directory,
            opens_browser=browser,
            on_ready=print_address,
        )
    except KeyboardInterrupt:
        echo("stopped; everything drawn is saved", err=True)

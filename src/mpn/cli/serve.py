"""Define the ``mpn serve`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from mpn.cli.output import echo


def serve(
    out: Path = typer.Option(
        Path("mpn-serve"),
        "--out",
        "-o",
        metavar="DIR",
        help="Folder of the sessions: uploads, results and the random token.",
    ),
    host: str = typer.Option(
        "127.0.0.1", metavar="ADDRESS", help="Listen on this address of this machine."
    ),
    port: int = typer.Option(
        8080, metavar="N", min=0, max=65535, help="Listen on this port; 0 for a free one."
    ),
    allow_remote: bool = typer.Option(
        False,
        "--allow-remote",
        help="Allow an ADDRESS that other machines reach. There is no encryption: use a proxy "
        "with TLS.",
    ),
    token_file: Path = typer.Option(
        None,
        metavar="FILE",
        help="Read the token of the clients from FILE.",
        show_default="MPN_SERVE_TOKEN, else a random one in DIR/token",
    ),
    engine_dir: str = typer.Option(
        None,
        metavar="DIR",
        help="Use these engines of mpn-export: a folder, zip file or address.",
        show_default="the installed weights",
    ),
    threads: int = typer.Option(
        1,
        metavar="N",
        min=1,
        help="Run each network on N threads, and as many sessions at once as there are cores for.",
    ),
    sessions: int = typer.Option(8, metavar="N", min=1, help="Allow N sessions at once."),
    memory: int = typer.Option(
        4000, metavar="MB", min=100, help="Allow sessions that need MB together, by an estimate."
    ),
    idle: float = typer.Option(
        600, metavar="S", min=1, help="Remove a session S seconds after its last request or frame."
    ),
    queue: int = typer.Option(
        4, metavar="N", min=1, help="Let N frames of a session wait for the networks."
    ),
    max_upload: int = typer.Option(
        2048, metavar="MIB", min=1, help="Largest video, and all uploads of a session."
    ),
    max_image: int = typer.Option(32, metavar="MIB", min=1, help="Largest frame or mask file."),
    max_pixels: int = typer.Option(
        10_000_000, metavar="N", min=256, help="Largest frame in pixels."
    ),
    max_objects: int = typer.Option(
        20, metavar="N", min=1, max=254, help="Most objects of a session."
    ),
    max_frames: int = typer.Option(100_000, metavar="N", min=1, help="Most frames of a session."),
    shutdown: float = typer.Option(
        30,
        metavar="S",
        min=1,
        help="After SIGTERM or Ctrl-C, finish the queued frames within S seconds.",
    ),
) -> None:
    """Serve segmentation over HTTP to programs: upload, stream masks, correct.

    The networks run on the CPU, without fine-tuning. GET /openapi.json describes the interface,
    docs/serve.md has a client.
    """
    from mpn.errors import import_or_explain

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        import_or_explain(module, extra="serve", purpose="mpn serve")
    from mpn._common.concurrency import usable_threads
    from mpn.cli.usage import option_errors
    from mpn.service.limits import Limits
    from mpn.service.server import serve as serve_until_stopped

    with option_errors():
        threads = usable_threads(threads) or 1

    def print_address(address: str, token: str) -> None:
        echo(address)
        echo(f"{token}; stop with Ctrl-C, which saves the sessions in {out}", err=True)

    serve_until_stopped(
        out,
        host=host,
        port=port,
        allows_remote=allow_remote,
        token_file=token_file,
        engine_dir=engine_dir,
        threads=threads,
        limits=Limits(
            sessions=sessions,
            memory_mb=memory,
            idle_s=idle,
            queue=queue,
            upload_mb=max_upload,
            image_mb=max_image,
            pixels=max_pixels,
            objects=max_objects,
            frames=max_frames,
            shutdown_s=shutdown,
        ),
        on_ready=print_address,
    )
    echo("stopped; the results of the sessions are saved", err=True)

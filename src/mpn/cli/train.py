"""The ``mpn train`` commands."""

from __future__ import annotations

import typer

train_app = typer.Typer(help="Train a network (needs the extra [export]).", no_args_is_help=True)


@train_app.callback()
def _train() -> None:
    pass

"""The ``mpn`` application and its two shortcuts.

Exit codes: 0 success, 1 failure (one line on stderr), 2 wrong usage, 130 interrupted by Ctrl-C,
143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable

import typer

from mpn import __version__
from mpn._common.signals import Stopped, stop_signals
from mpn.cli.bench import bench
from mpn.cli.convert import convert
from mpn.cli.demo import demo
from mpn.cli.eval import evaluate
from mpn.cli.export import export
from mpn.cli.inspect import inspect
from mpn.cli.output import echo, echo_document
from mpn.cli.renamed import refusal_of
from mpn.cli.review import review
from mpn.cli.run import INTERRUPTED, SIGNAL_BASE, run
from mpn.cli.studio import studio
from mpn.cli.train import train_app
from mpn.cli.usage import EPILOG, UsageError, usage_message, with_home
from mpn.errors import MpnError

USAGE_ERROR = 2

app = typer.Typer(
    name="mpn",
    help="Video object segmentation with the Mask Propagation Network: one mask in, masks out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)


def _print_version(is_set: bool) -> None:
    if is_set:
        echo(f"mpn-runtime {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


app.command("run", epilog=EPILOG)(with_home(run))
app.command("export", epilog=EPILOG)(with_home(export))
app.command("eval", epilog=EPILOG)(with_home(evaluate))
app.command("bench", epilog=EPILOG)(with_home(bench))
app.command("inspect", epilog=EPILOG)(with_home(inspect))
app.command("convert", epilog=EPILOG)(with_home(convert))
app.command("review", epilog=EPILOG)(with_home(review))
app.command("studio", epilog=EPILOG)(with_home(studio))
app.command("demo", epilog=EPILOG)(with_home(demo))
app.add_typer(train_app, name="train")


def _single_command(function: Callable[..., None], name: str) -> typer.Typer:
    single = typer.Typer(name=name, add_completion=False, pretty_exceptions_enable=False)
    single.command(epilog=EPILOG)(with_home(function))
    return single


def _run_app(application: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run an application and return its exit code; print errors as one line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    _escape_unprintable_names()
    try:
        with stop_signals():
            code = application(args=given, standalone_mode=False)
    except SystemExit as stop:  # a closed pipe
        return stop.code if isinstance(stop.code, int) else 0
    except typer.Abort as abort:
        _print_error("interrupted")
        return _exit_code(abort.__cause__)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            unknown = getattr(error, "option_name", None)
            command = None if error.ctx is None else error.ctx.command.name
            _print_error(refusal_of(command, unknown) or usage_message(error, given))
        return USAGE_ERROR
    except MpnError as error:
        if debug:
            echo_document(traceback.format_exc().rstrip(), err=True)
            return 1
        _print_error(str(error))
        return 1
    return code if isinstance(code, int) else 0


def _exit_code(cause: BaseException | None) -> int:
    """Return 130 for Ctrl-C, 143 for SIGTERM and 129 for SIGHUP, as a shell does."""
    return SIGNAL_BASE + cause.signum if isinstance(cause, Stopped) else INTERRUPTED


def _escape_unprintable_names() -> None:
    """Print file names that are not UTF-8 with escapes instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _print_error(message: str) -> None:
    echo(f"error: {' '.join(message.split())}", err=True)


def main() -> None:
    """Run ``mpn``."""
    sys.exit(_run_app(app))


def main_export() -> None:
    """Run ``mpn-export``, the same as ``mpn export``."""
    sys.exit(_run_app(_single_command(export, "mpn-export")))


def main_run() -> None:
    """Run ``mpn-run``, the same as ``mpn run``."""
    sys.exit(_run_app(_single_command(run, "mpn-run")))

"""The ``mpn`` application and its two shortcuts.

Exit codes: 0 success, 1 failure (one line on stderr), 2 wrong usage, 130 interrupted by Ctrl-C,
143 by SIGTERM, 129 by SIGHUP, 141 if the reader of stdout ended, as ``head`` does.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable

import typer

from mpn import __version__
from mpn._common.cores import limit_library_threads
from mpn._common.memory import memory_errors, save_address_space
from mpn._common.signals import Stopped, stop_signals
from mpn.cli.batch import batch
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
from mpn.cli.serve import serve
from mpn.cli.streams import guarded_streams, is_closed_pipe
from mpn.cli.studio import studio
from mpn.cli.train import train_app
from mpn.cli.usage import EPILOG, UsageError, usage_message, with_home
from mpn.errors import MpnError, MpnWarning

FAILURE = 1
USAGE_ERROR = 2
CLOSED_PIPE = SIGNAL_BASE + 13
"""As after SIGPIPE, which Python ignores."""

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
app.command("batch", epilog=EPILOG)(with_home(batch))
app.command("export", epilog=EPILOG)(with_home(export))
app.command("eval", epilog=EPILOG)(with_home(evaluate))
app.command("bench", epilog=EPILOG)(with_home(bench))
app.command("inspect", epilog=EPILOG)(with_home(inspect))
app.command("convert", epilog=EPILOG)(with_home(convert))
app.command("review", epilog=EPILOG)(with_home(review))
app.command("studio", epilog=EPILOG)(with_home(studio))
app.command("serve", epilog=EPILOG)(with_home(serve))
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
    save_address_space()
    try:
        with stop_signals(), memory_errors("this command"), warnings.catch_warnings():
            warnings.showwarning = _print_warning
            code = application(args=given, standalone_mode=False)
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
    except (MpnError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # a stream, or an internal error
            raise
        if debug:
            echo_document(traceback.format_exc().rstrip(), err=True)
        elif isinstance(error, OSError):
            _print_error(f"cannot use {os.fsdecode(error.filename)}: {error.strerror}")
        else:
            _print_error(str(error))
        return FAILURE
    return code if isinstance(code, int) else 0


def _exit_code(cause: BaseException | None) -> int:
    """Return 130 for Ctrl-C, 143 for SIGTERM and 129 for SIGHUP, as a shell does."""
    return SIGNAL_BASE + cause.signum if isinstance(cause, Stopped) else INTERRUPTED


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    *_: object,
    **__: object,
) -> None:
    if issubclass(category, MpnWarning):
        echo(f"warning: {message}", err=True)
    else:
        echo_document(warnings.formatwarning(message, category, filename, lineno), err=True)


def _print_error(message: str) -> None:
    echo(f"error: {' '.join(message.split())}", err=True)


def _run_process(application: typer.Typer) -> None:
    """Run an application as this process, and exit."""
    limit_library_threads()
    with guarded_streams() as streams:
        code = _run_app(application)
        error = streams.stdout_error()
        if error is not None and code == 0:
            if is_closed_pipe(error):
                code = CLOSED_PIPE
            else:
                _print_error(
                    f"the text of the result cannot be written to stdout ({error.strerror}); "
                    "all files of the result are complete"
                )
                code = FAILURE
    sys.exit(code)


def main() -> None:
    """Run ``mpn``."""
    _run_process(app)


def main_export() -> None:
    """Run ``mpn-export``, the same as ``mpn export``."""
    _run_process(_single_command(export, "mpn-export"))


def main_run() -> None:
    """Run ``mpn-run``, the same as ``mpn run``."""
    _run_process(_single_command(run, "mpn-run"))

"""The ``mpn batch`` command."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.output import echo, echo_document
from mpn.cli.run import BackendName, run, run_options
from mpn.cli.usage import option_errors

if TYPE_CHECKING:
    from mpn.batch.batch import BatchState
    from mpn.batch.outcome import Settings, UnitOutcome
    from mpn.batch.plan import Plan
    from mpn.batch.runner import Runner
    from mpn.batch.shard import Shard

SOME_FAILED = 3
_MOST_SHOWN = 20
_OF_ONE_RUN = ("video", "mask", "out", "threads", "resume", "quiet", "as_json")
"""Parameters of ``mpn run`` that a batch does not have, or has in another form."""


class RunnerName(StrEnum):
    """Values of ``--runner``."""

    LOCAL = "local"
    RAY = "ray"


def batch(
    videos: list[str] = typer.Argument(
        None,
        metavar="MANIFEST|VIDEO...",
        help="A manifest (.csv or .jsonl) with the columns video, mask, out, name and options of "
        "mpn run; or videos, folders of videos, and patterns such as 'clips/*.mp4'.",
        show_default=False,
    ),
    mask: str = typer.Option(
        None,
        metavar="TEMPLATE",
        help="Mask of each video without a manifest, such as 'masks/{name}.png'.",
        show_default=False,
    ),
    out_root: str = typer.Option(
        None,
        "--out-root",
        "-o",
        metavar="DIR",
        help="Write the results of each video to DIR/NAME, and the log to DIR/batch.jsonl. DIR "
        "may be an address such as s3://bucket/results; the log is then in <manifest>-mpn.",
        show_default="<manifest>-mpn",
    ),
    workers: int = typer.Option(
        None,
        metavar="N",
        min=1,
        help="Run N videos at once.",
        show_default="as many as fit cores and memory, or one per GPU",
    ),
    threads: int = typer.Option(
        None,
        metavar="N",
        min=1,
        help="Use N CPU threads for each video.",
        show_default="cores / workers",
    ),
    retry: int = typer.Option(
        1,
        metavar="N",
        min=0,
        help="Run a video up to N times again if its process was killed or its output failed.",
    ),
    resume: bool = typer.Option(
        False,
        "--resume",
        help="Continue interrupted videos at their last frame instead of their first one.",
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Run videos that are done, too."),
    shard: str = typer.Option(
        None,
        metavar="I/N",
        help="Run only part I of N of the videos, from 1; each video is in one part.",
        show_default="all",
    ),
    runner: RunnerName = typer.Option(
        RunnerName.LOCAL, help="Run in processes of this machine, or on a Ray cluster."
    ),
    address: str = typer.Option(
        None,
        metavar="ADDRESS",
        help="Use the Ray cluster at HOST:PORT or ray://HOST:PORT.",
        show_default="RAY_ADDRESS, else the cluster of this machine, else one for this batch",
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the videos that would run, and why; run none."
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(
        False, "--json", help="Print the counts to stdout at the end; progress goes to stderr."
    ),
    *,
    engine_dir: str | None,
    backend: BackendName,
    build: bool,
    **given: Any,
) -> None:
    """Segment many videos, each as mpn run does, and continue after failures.

    Videos that are done with the same inputs, options and engines are skipped, so the same command
    continues an interrupted batch. The folder of each video gets done.json at its end, or
    error.json with the reason. Options of mpn run apply to all videos that do not set them. Exit
    code 0: all are done; 3: some failed.
    """
    if address is not None and runner is not RunnerName.RAY:
        raise typer.BadParameter("--address is for --runner ray")
    if resume and fresh:
        raise typer.BadParameter("--resume contradicts --fresh")
    options = run_options(**given)
    from mpn.batch.manifest import check_options, check_sources, read_units
    from mpn.batch.outcome import Settings
    from mpn.batch.plan import plan_units
    from mpn.batch.shard import Shard

    with option_errors():
        check_sources(videos or [], mask)
        check_options(options)
        part = None if shard is None else Shard.from_text(shard)
    units = read_units(videos, out_root=out_root, mask=mask, options=options)
    if part is not None:
        units = part.units_of(units)
    settings = Settings(
        engine_dir=engine_dir,
        backend=backend.value,
        threads=threads,
        build=build,
        resume=resume,
        fresh=fresh,
    )
    plan = plan_units(units, settings)
    if dry_run:
        _print_plan(plan)
        return
    log_path = _log_path(videos, out_root, part)
    with _runner_of(runner, settings, len(plan.to_run), workers, address) as chosen:
        state = _run(plan, chosen, settings, retry, log_path, part, quiet)
    if as_json:
        from mpn._common.files import json_text

        echo_document(json_text(state.as_json(), indent=2))
    elif not quiet:
        _print_summary(state)
    if state.stopped:
        from mpn.errors import OutputError

        raise OutputError(
            f"the batch stopped, {state.stopped}: run the same command again when there is space"
        )
    if state.failed:
        raise typer.Exit(SOME_FAILED)


@contextmanager
def _runner_of(
    name: RunnerName, settings: Settings, videos: int, workers: int | None, address: str | None
) -> Iterator[Runner]:
    if name is RunnerName.RAY and videos:
        from mpn.batch.runners.ray_cluster import RayCluster
        from mpn.batch.runners.ray_runner import ray_runner

        with RayCluster(address) as cluster:
            yield ray_runner(cluster, settings, videos, workers=workers)
        return
    from mpn.batch.runners.local import local_runner

    yield local_runner(settings, videos, workers=workers)


def _log_path(videos: list[str], out_root: str | None, shard: Shard | None) -> Path:
    """Return the path of batch.jsonl; each shard has its own, for other machines."""
    from mpn._common.storage import is_remote
    from mpn.batch.manifest import default_root

    is_local = out_root is not None and not is_remote(out_root)
    folder = Path(out_root if out_root and is_local else default_root(videos))
    name = "batch" if shard is None else f"batch-{shard.number}-of-{shard.count}"
    return folder / f"{name}.jsonl"


def _run(
    plan: Plan,
    runner: Runner,
    settings: Settings,
    retry: int,
    log_path: Path,
    shard: Shard | None,
    quiet: bool,
) -> BatchState:
    from mpn import __version__
    from mpn._common.storage import public_address
    from mpn.batch.batch import run_batch
    from mpn.batch.log import BatchLog
    from mpn.cli.batch_view import batch_display

    facts = {
        "version": __version__,
        "workers": runner.workers,
        "shard": None if shard is None else str(shard),
        "process": os.getpid(),
        "settings": {
            **settings.as_json(),
            "engine_dir": settings.engine_dir and public_address(settings.engine_dir),
        },
    }
    finished = len(plan.skipped)
    with BatchLog(log_path) as log:
        try:
            with batch_display(plan, runner.workers, quiet=quiet) as show:

                def on_change(state: BatchState, outcome: UnitOutcome | None) -> None:
                    nonlocal finished
                    finished = state.finished
                    show(state, outcome)

                state = run_batch(
                    plan, runner, retry=retry, log=log, facts=facts, on_change=on_change
                )
        except KeyboardInterrupt:
            total = len(plan.to_run) + len(plan.skipped)
            echo(
                f"{finished} of {total} videos are finished: the same command runs the others",
                err=True,
            )
            raise
        if log.problem:
            echo(f"warning: {log.path} is not complete: {log.problem}", err=True)
    return state


def _print_plan(plan: Plan) -> None:
    for one in plan.to_run:
        frames = "" if one.frames is None else f", {one.frames} frames"
        echo(f"{one.unit.name}: {one.reason}{frames}")
    echo(f"{len(plan.to_run)} to run, {len(plan.skipped)} done before")


def _print_summary(state: BatchState) -> None:
    from mpn.batch.records import CHANGED, MEANWHILE
    from mpn.cli.batch_view import counted, reason_of

    failed = list(state.failed.values())
    if failed:
        width = max(len(outcome.name) for outcome in failed[:_MOST_SHOWN])
        echo(f"{'failed':{width}}  attempts  reason")
        for outcome in failed[:_MOST_SHOWN]:
            echo(f"{outcome.name:{width}}  {outcome.attempt:8}  {reason_of(outcome, state)}")
        if len(failed) > _MOST_SHOWN:
            echo(f"and {len(failed) - _MOST_SHOWN} more: see the log")
    meanwhile = sum(outcome.reason == MEANWHILE for outcome in state.skipped)
    counts = [f"{len(state.done)} done", f"{len(state.skipped) - meanwhile} done before"]
    changed = sum(outcome.reason == CHANGED for outcome in state.skipped)
    counts += [f"{changed} of these then changed by another run"] if changed else []
    counts += [f"{meanwhile} {MEANWHILE}"] if meanwhile else []
    counts += [f"{len(failed)} failed"] if failed else []
    warned = sum(bool(outcome.warnings) for outcome in state.done.values())
    counts += [f"{warned} with warnings, see the log"] if warned else []
    left = state.total - state.finished
    counts += [f"{left} not run"] if left else []
    echo(
        f"{counted(state.total, 'video')}: {', '.join(counts)}; {state.frames} frames in "
        f"{state.elapsed_s:.0f} s, {state.fps:.1f} FPS"
    )


def _with_options_of_run() -> inspect.Signature:
    """Return the signature of the command, with the options of ``mpn run``."""
    own = inspect.signature(batch, eval_str=True).parameters
    of_run = inspect.signature(run, eval_str=True).parameters
    kept = [one for one in own.values() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    added = [one for name, one in of_run.items() if name not in _OF_ONE_RUN]
    return inspect.Signature([*kept, *added])


batch.__signature__ = _with_options_of_run()  # type: ignore[attr-defined]

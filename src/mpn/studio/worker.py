"""Run one video in a child process of the studio.

The first line of standard input is the request, as JSON. The run stops as by Ctrl-C when standard
input ends: the studio closes it to cancel, and the system closes it if the studio is killed.
Standard output has one event per line, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from mpn._common.files import json_text
from mpn.errors import MpnError
from mpn.masks import save_labels
from mpn.runtime.session.schedule import Direction


def main() -> int:
    """Run the request of standard input; return the exit code."""
    # A server that a shell started in the background has SIGINT ignored, and this child too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.loads(sys.stdin.buffer.readline())
    # Lines of libraries go to standard error; they are no events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        _run(request, events)
        end = {"type": "complete"}
    except KeyboardInterrupt:
        end = {"type": "stopped"}
    except MpnError as error:
        end = {"type": "failed", "message": str(error)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late to cancel
    _emit(events, end)
    return 0


def request_as_json(
    *,
    video: str,
    masks: Mapping[int, Path],
    directions: Mapping[int, Direction],
    names: Mapping[int, str],
    out: Path,
    provisional: Path,
    engine_dir: Path | None,
    start: int | None,
    end: int | None,
    save: frozenset[str],
    resume: bool,
    review: bool,
) -> dict[str, Any]:
    """Return the request of a child process.

    Args:
        video: See :class:`RunRequest`, as for the others.
        masks: By frame index.
        directions: By frame index.
        names: By object id.
        out: Output folder.
        provisional: Folder for the masks of backward passes, which are not results yet.
        engine_dir: Engines.
        start: First frame.
        end: End.
        save: Results.
        resume: Whether to continue an earlier run.
        review: Whether to write review.html.
    """
    return {
        "video": video,
        "masks": {str(index): str(path) for index, path in masks.items()},
        "directions": {str(index): direction for index, direction in directions.items()},
        "names": {str(object_id): name for object_id, name in names.items()},
        "out": str(out),
        "provisional": str(provisional),
        "engine_dir": None if engine_dir is None else str(engine_dir),
        "start": start,
        "end": end,
        "save": sorted(save),
        "resume": resume,
        "review": review,
    }


def provisional_path(folder: Path, index: int) -> Path:
    """Return the path of the provisional mask of a frame."""
    return folder / f"{index}.png"


def _run(request: Mapping[str, Any], events: TextIO) -> None:
    from mpn.runtime.session.passes import FrameUpdate
    from mpn.runtime.session.request import Progress, RunRequest
    from mpn.runtime.session.session import run_video

    def on_progress(progress: Progress) -> None:
        backward = progress.backward
        _emit(
            events,
            {
                "type": "progress",
                "done": progress.done,
                "expected": progress.expected,
                "backward": None if backward is None else asdict(backward),
            },
        )

    def on_frame(update: FrameUpdate) -> None:
        if not update.is_final:  # the studio finds final masks in the output folder
            save_labels(provisional_path(folder, update.index), update.result.labels)
            objects = [track.as_json() for track in update.result.tracks]
            _emit(events, {"type": "provisional", "frame": update.index, "objects": objects})

    # After the imports: a library may report an interrupt while it is imported as another error.
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    engine_dir, folder = request["engine_dir"], Path(request["provisional"])
    run_video(
        RunRequest(
            video=request["video"],
            masks={int(index): Path(path) for index, path in request["masks"].items()},
            direction="both",  # a direction that the user set back must not be kept
            directions={int(index): each for index, each in request["directions"].items()},
            names={int(object_id): name for object_id, name in request["names"].items()},
            out=Path(request["out"]),
            engine_dir=None if engine_dir is None else Path(engine_dir),
            start=request["start"],
            end=request["end"],
            save=frozenset(request["save"]),
            resume=request["resume"],
            review=request["review"],
        ),
        on_progress=on_progress,
        on_frame=on_frame,
    )


def _emit(events: TextIO, event: Mapping[str, Any]) -> None:
    with suppress(BrokenPipeError):  # the studio was killed; the end of the input stops the run
        events.write(json_text(event) + "\n")


def _stop_at_end_of_input() -> None:
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    # To the process, not to this thread: the main thread may wait in a lock.
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())

"""Read files in another process, with limits of memory."""

from __future__ import annotations

import faulthandler
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import mpn
from mpn.errors import MpnError, OutOfMemoryError
from tools.fuzz.targets import TARGETS, Target

_PACKAGE = str(Path(mpn.__file__).parent)
_MOST_TRACED_LINES = 20_000
_LONGEST_MESSAGE = 4000
"""Letters of a message of the package: it is one line for a person."""


@dataclass(frozen=True)
class Outcome:
    """Result of one input.

    Attributes:
        kind: ``"accepted"``, ``"refused"`` or a kind of escape: ``"exception"``, ``"memory"``,
            ``"message"``, ``"crash"``, ``"hang"``.
        name: The error's class; for an escape also its place.
        text: Message, or traceback of an escape.
        cause: Class of the error that a refusal came from.
        cpu_s: Time of all threads.
        peak_mib: Largest resident memory of the process.
        lines: Lines of the package that this process ran for the first time.
    """

    kind: str
    name: str = ""
    text: str = ""
    cause: str = ""
    cpu_s: float = 0.0
    peak_mib: float = 0.0
    lines: tuple[str, ...] = ()

    @property
    def is_escape(self) -> bool:
        """Whether this must not happen."""
        return self.kind not in ("accepted", "refused")


def serve(
    connection: Connection, target_name: str, folder: Path, memory_mib: int, path: list[str]
) -> None:
    """Read inputs until the connection closes.

    Args:
        connection: Gives pairs of file name and content, and takes the outcomes.
        target_name: One of :data:`tools.fuzz.targets.TARGETS`.
        folder: An empty folder for the files, and for the output of libraries.
        memory_mib: Address space that the process may take beyond that at the start.
        path: Search path of modules.
    """
    sys.path[:] = path
    log = os.open(folder / "worker.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()
    target = TARGETS[target_name]
    inputs = folder / "input"
    seen: set[tuple[str, int]] = set()
    is_limited = False
    with suppress(EOFError):
        while True:
            name, data = connection.recv()
            shutil.rmtree(inputs, ignore_errors=True)
            inputs.mkdir()
            target.place(inputs, name, data)
            connection.send(read_outcome(target, inputs / name, seen))
            if not is_limited:  # the first input has loaded the libraries
                is_limited = True
                limit = _address_space() + (memory_mib << 20)
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read_outcome(target: Target, path: Path, known: set[tuple[str, int]]) -> Outcome:
    """Read one file, and classify what happens.

    Args:
        target: The reader.
        path: The file.
        known: Lines of the package that this process ran; new ones are added.
    """
    before, start = set(known), time.process_time()
    _reset_peak()
    kind, name, text, cause = "accepted", "", "", ""
    try:
        with _traced(known):
            target.read(path)
    except MpnError as error:
        kind, name, text = "refused", type(error).__name__, str(error)
        cause = type(error.__cause__).__name__ if error.__cause__ else ""
        if len(text) > _LONGEST_MESSAGE:
            kind, name = "message", f"{name} of {_place(error)}"
        elif isinstance(error, OutOfMemoryError):
            kind, name = "memory", f"{name} of {_place(error)}"
    except BaseException as error:
        kind = "memory" if isinstance(error, MemoryError) else "exception"
        name = f"{type(error).__name__} in {_place(error)}"
        text = "".join(traceback.format_exception(error))[-8000:]
    cpu_s = time.process_time() - start
    peak_mib = _peak_mib()
    lines = tuple(f"{file}:{line}" for file, line in known - before)
    return Outcome(kind, name, text, cause, cpu_s, peak_mib, lines)


def _place(error: BaseException) -> str:
    """Return the innermost line of the package in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_PACKAGE)] or frames
    return (
        f"{Path(ours[-1].filename).relative_to(Path(_PACKAGE).parent)}:{ours[-1].name}"
        if (ours[-1].filename.startswith(_PACKAGE))
        else f"{Path(ours[-1].filename).name}:{ours[-1].name}"
    )


@contextmanager
def _traced(seen: set[tuple[str, int]]) -> Iterator[None]:
    """Note the lines of the package that run, up to a number of them.

    A loop over the opcodes of a pickle takes 20 times as long if each line is noted.
    """
    left = _MOST_TRACED_LINES

    def in_function(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            left -= 1
        return in_function if left > 0 else None

    def on_call(frame: FrameType, _event: str, _: Any) -> Any:
        is_traced = left > 0 and frame.f_code.co_filename.startswith(_PACKAGE)
        return in_function if is_traced else None

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(None)


def _reset_peak() -> None:
    with suppress(OSError):  # a kernel without it gives the peak of all inputs
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()

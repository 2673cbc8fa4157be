"""Keep what the studio edits in an ordinary output folder of a run.

``corrections/<frame>.png`` has the mask that a user drew for a frame, ``studio.json`` the names of
the objects and the directions of the masks. Each is written atomically, so a killed server leaves
the last saved state.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.files import (
    is_nonempty_file,
    journal_path,
    output_errors,
    save_json,
    visible_files,
    write_bytes_atomically,
)
from mpn._common.locks import FolderLock
from mpn._common.records import json_from_text, read_json, record_from_json
from mpn.errors import InputError, MaskError, MpnError, OutputError
from mpn.masks import load_annotation, load_labels, png_from_labels
from mpn.runtime.media.random_access import FrameAccess
from mpn.runtime.media.writers import crc32_of_frame
from mpn.runtime.session.earlier import load_earlier_run
from mpn.runtime.session.layout import check_not_input, check_out, result_paths
from mpn.runtime.session.schedule import Direction
from mpn.types import MAX_OBJECT_ID, UInt8Array

MaskSource = Literal["drawn", "result", "none"]

STUDIO_SCHEMA = 1
NO_ETAG = "none"
"""Revision of a frame without a drawn mask."""

_Stamp = tuple[int, int, int] | None

MAX_NAME_LENGTH = 60
_UNFINISHED = re.compile(r"\..+\.partial", re.DOTALL)


class StaleError(MpnError):
    """A page changes a state that another page has changed since it was loaded.

    Attributes:
        etag: The present revision.
    """

    def __init__(self, etag: str) -> None:
        super().__init__("another page changed this in the meantime")
        self.etag = etag


@dataclass(frozen=True)
class _Notes:
    """Content of studio.json."""

    schema_version: int = STUDIO_SCHEMA
    names: Mapping[str, str] = field(default_factory=dict)
    directions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownMask:
    """The mask of a frame that a page shows.

    Attributes:
        labels: (H, W) uint8 ids; None if the frame has no mask yet.
        source: Whether it was drawn here or is a result.
        etag: Revision of the drawn mask of this frame.
    """

    labels: UInt8Array | None
    source: MaskSource
    etag: str


class Project(Closeable):
    """The output folder of one video, open for editing by one server.

    Args:
        video: Address of the video for the runs.
        access: The same video, open.
        out: Output folder; created if it is missing. None: ``<name of the video>-mpn``.

    Attributes:
        name: Name of the video.
        frame_count: Number of its frames.
        paths: Paths of the results.
        size_hw: (height, width) of all frames.
        first_index: First frame of the runs.
        end: End of the runs; None: the end of the video.

    Raises:
        OutputError: If the folder cannot be written, has the results of another video, or another
            studio has it open.
    """

    def __init__(self, video: str, access: FrameAccess, out: Path | None) -> None:
        self.video, self.frame_count = video, access.frame_count
        self._lock = threading.RLock()
        self._etags: dict[Path, tuple[_Stamp, str]] = {}
        self._sources: dict[int, tuple[tuple[_Stamp, _Stamp], MaskSource]] = {}
        source = access.source
        self.name, self.size_hw, self._names = source.name, source.size_hw, access.names
        self.out = out or Path(f"{source.name}-mpn")
        self.paths = result_paths(self.out, source)
        check_out(self.out)
        check_not_input(self.paths, source)
        self.folder = self.paths.folder / "corrections"
        self._folder_lock = FolderLock(self.folder, subject=self.out)
        try:
            self._remove_unfinished()
            self._notes = self._load_notes()
            run = self.run_report()
            self._check_video(access)
            limits = {} if run is None else run.get("video", {})
            self.first_index: int = limits.get("start") or 0
            self.end: int | None = limits.get("end")
            self._adopt_masks(run)
        except BaseException:
            self._folder_lock.close()
            raise

    def close(self) -> None:
        """Unlock the folder."""
        self._folder_lock.close()

    # masks

    def mask(self, index: int) -> ShownMask:
        """Return the mask of a frame: the result, unless a mask was drawn after it.

        Raises:
            MpnError: If a file cannot be read.
        """
        with self._lock:
            drawn = self._load(self.drawn_path(index))
            result = self._load_result(index)
            etag = self.etag(index)
        if drawn is None or not drawn.any():  # nothing was drawn, or everything was erased
            return ShownMask(result, "none" if result is None else "result", etag)
        if result is not None and _holds(result, drawn):
            return ShownMask(result, "result", etag)
        return ShownMask(drawn, "drawn", etag)

    @property
    def journal(self) -> Path:
        """Journal of tracks.jsonl, to which a run in progress appends."""
        return journal_path(self.paths.tracks)

    def drawn_path(self, index: int) -> Path:
        """Return the path of the drawn mask of a frame."""
        return self.folder / f"{self._names[index]}.png"

    def result_path(self, index: int) -> Path:
        """Return the path of the resulting mask of a frame."""
        return self.paths.masks / f"{self._names[index]}.png"

    def etag(self, index: int) -> str:
        """Return the revision of the drawn mask: a digest of its file."""
        path = self.drawn_path(index)
        stamp = _stamp(path)
        if stamp is None:
            return NO_ETAG
        if self._etags.get(path, (None,))[0] != stamp:
            self._etags[path] = stamp, hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        return self._etags[path][1]

    def save_mask(self, index: int, labels: UInt8Array, *, base_etag: str | None) -> str:
        """Write the mask that was drawn for a frame; one without objects is no drawing.

        Args:
            index: Index of the frame.
            labels: (H, W) uint8, ids 0..254.
            base_etag: Revision that the page began with; None overwrites any.

        Returns:
            The new revision.

        Raises:
            StaleError: If the revision is another one.
            MaskError: If the mask has another size or an id above 254.
            OutputError: If it cannot be written.
        """
        if labels.shape != self.size_hw or labels.max(initial=0) > MAX_OBJECT_ID:
            raise MaskError(
                f"a mask of this video is {self.size_hw[1]}x{self.size_hw[0]} ids of "
                f"0..{MAX_OBJECT_ID}"
            )
        with self._lock:
            self._check_base(index, base_etag)
            if not labels.any():
                self._remove_drawn(index)
                return NO_ETAG
            self._make_folder()
            write_bytes_atomically(self.drawn_path(index), png_from_labels(labels), durable=True)
            return self.etag(index)

    def remove_mask(self, index: int, *, base_etag: str | None) -> None:
        """Remove the drawn mask of a frame; see :meth:`save_mask` for the errors."""
        with self._lock:
            self._check_base(index, base_etag)
            self._remove_drawn(index)

    def drawn(self) -> dict[int, str]:
        """Return the revisions of all drawn masks by frame index."""
        with self._lock:
            index_of = {name: index for index, name in enumerate(self._names)}
            found = visible_files(self.folder, "*.png")
            indices = sorted(index_of[path.stem] for path in found if path.stem in index_of)
            return {index: self.etag(index) for index in indices}

    def pending(self) -> list[int]:
        """Return the frames whose drawn mask is not in the results yet."""
        return [index for index in self.drawn() if self._source(index) == "drawn"]

    def usable_masks(self) -> dict[int, Path]:
        """Return the drawn masks that a run can take: those that hold an object."""
        with self._lock:
            paths = {index: self.drawn_path(index) for index in self.drawn()}
            return {
                index: path
                for index, path in paths.items()
                if (labels := self._load(path)) is not None and labels.any()
            }

    def result_count(self) -> int:
        """Return the number of frames that have a resulting mask."""
        return len(visible_files(self.paths.masks, "*.png"))

    # names and directions

    @property
    def names(self) -> dict[int, str]:
        """Names of the objects by id."""
        return {int(key): name for key, name in self._notes.names.items()}

    @property
    def directions(self) -> dict[int, Direction]:
        """Directions of the drawn masks by frame index, if they are not both."""
        return {
            int(key): value  # type: ignore[misc]
            for key, value in self._notes.directions.items()
        }

    def set_name(self, object_id: int, name: str) -> None:
        """Name an object, or remove its name by an empty text.

        Raises:
            InputError: If the id or the name is not valid.
            OutputError: If it cannot be written.
        """
        text = " ".join(name.split())
        if not 1 <= object_id <= MAX_OBJECT_ID:
            raise InputError(f"an object has an id of 1..{MAX_OBJECT_ID}, not {object_id}")
        if len(text) > MAX_NAME_LENGTH or not text.isprintable():
            raise InputError(f"a name has at most {MAX_NAME_LENGTH} printable characters")
        with self._lock:
            names = _without(self._notes.names, str(object_id))
            self._set_notes(names={**names, str(object_id): text} if text else names)

    def set_direction(self, index: int, direction: Direction) -> None:
        """Set the direction in which the drawn mask of a frame is propagated.

        Raises:
            OutputError: If it cannot be written.
        """
        with self._lock:
            others = _without(self._notes.directions, str(index))
            is_default = direction == "both"
            self._set_notes(directions=others if is_default else {**others, str(index): direction})

    # results

    def run_report(self) -> dict[str, Any] | None:
        """Return run.json of the last run, finished or not; None if there is none."""
        return load_earlier_run(self.paths)

    def save_names_of_results(self) -> None:
        """Write the names of the objects to run.json, which other commands read.

        Raises:
            OutputError: If it cannot be written.
        """
        path = self.paths.run_json
        report = self.run_report() if path.exists() else None
        names = {str(object_id): name for object_id, name in sorted(self.names.items())}
        if report is not None and report.get("object_names", {}) != names:
            save_json(path, {**report, "object_names": names})

    def tracks(self) -> list[dict[str, Any]]:
        """Return the lines of tracks.jsonl by frame; those of a run in progress go first."""
        by_frame: dict[int, dict[str, Any]] = {}
        for path in (self.paths.tracks, self.journal):
            if is_nonempty_file(path):
                with output_errors(path):
                    text = path.read_bytes().decode("utf-8", "replace")
                by_frame |= {entry["frame"]: entry for entry in track_entries(text)}
        return [by_frame[index] for index in sorted(by_frame)]

    # private

    def _remove_drawn(self, index: int) -> None:
        with output_errors(self.folder):
            self.drawn_path(index).unlink(missing_ok=True)
        self._set_notes(directions=_without(self._notes.directions, str(index)))

    def _make_folder(self) -> None:
        """Create the folder again if it was removed while it is open."""
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _source(self, index: int) -> MaskSource:
        """Return the source of a mask, and compare the files only if they have changed."""
        stamps = _stamp(self.drawn_path(index)), _stamp(self.result_path(index))
        if self._sources.get(index, (None,))[0] != stamps:
            self._sources[index] = stamps, self.mask(index).source
        return self._sources[index][1]

    def _load(self, path: Path) -> UInt8Array | None:
        if not is_nonempty_file(path):
            return None
        return load_labels(
            path,
            size_hw=self.size_hw,
            max_objects=MAX_OBJECT_ID,
            allow_empty=True,
            on_note=lambda _: None,
        )

    def _load_result(self, index: int) -> UInt8Array | None:
        """Read a mask that a run wrote: without the checks of a mask that a user made."""
        path = self.result_path(index)
        if not is_nonempty_file(path):
            return None
        labels = load_annotation(path)
        if labels.shape != self.size_hw:
            raise OutputError(f"{path} is not of this video: choose another folder with -o")
        return labels

    def _check_base(self, index: int, base_etag: str | None) -> None:
        if base_etag is not None and base_etag != (present := self.etag(index)):
            raise StaleError(present)

    @property
    def _notes_path(self) -> Path:
        return self.paths.folder / "studio.json"

    def _load_notes(self) -> _Notes:
        if not is_nonempty_file(self._notes_path):
            return _Notes()
        try:
            return record_from_json(read_json(self._notes_path, OutputError), _Notes, OutputError)
        except OutputError as error:
            raise OutputError(
                f"cannot read {self._notes_path}: remove it, which loses the names of the objects "
                f"({error})"
            ) from error

    def _set_notes(
        self,
        *,
        names: Mapping[str, str] | None = None,
        directions: Mapping[str, str] | None = None,
    ) -> None:
        before = self._notes
        notes = _Notes(
            names=before.names if names is None else names,
            directions=before.directions if directions is None else directions,
        )
        if notes == before:
            return
        self._make_folder()
        save_json(
            self._notes_path,
            {
                "schema_version": notes.schema_version,
                "names": dict(notes.names),
                "directions": dict(notes.directions),
            },
            durable=True,
        )
        self._notes = notes

    def _remove_unfinished(self) -> None:
        with output_errors(self.folder):
            for path in self.folder.iterdir():
                if _UNFINISHED.fullmatch(path.name) and path.is_file():
                    path.unlink()

    def _check_video(self, access: FrameAccess) -> None:
        """Raise OutputError if the first frame of the results is not of the video."""
        entry = next(iter(self.tracks()), None)
        checksum = None if entry is None else entry.get("frame_crc32")
        if entry is None or checksum is None:
            return
        index = entry["frame"]
        is_same = 0 <= index < self.frame_count
        if is_same:
            *_, frame = access.frames_up_to(index)
            is_same = crc32_of_frame(frame) == checksum
        if not is_same:
            raise OutputError(
                f"{self.out} has the results of another video than {access.source.address}: "
                "choose another folder with -o"
            )

    def _adopt_masks(self, run: Mapping[str, Any] | None) -> None:
        """Keep the masks of a run of the command line as drawn masks of this folder."""
        if run is None:
            return
        given = run.get("fingerprint", {}).get("masks", {})
        by_frame = {entry["frame"]: entry for entry in self.tracks()}
        for key in given:
            index = int(key)
            if not 0 <= index < self.frame_count or self.drawn_path(index).exists():
                continue
            result = self._load_result(index)
            objects = by_frame.get(index, {}).get("objects", ())
            ids = [track["object_id"] for track in objects if track.get("state") == "given"]
            if result is None or not ids:
                continue
            labels = np.where(np.isin(result, ids), result, 0).astype(np.uint8)
            write_bytes_atomically(self.drawn_path(index), png_from_labels(labels), durable=True)


def track_entries(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines; lines that are cut or damaged are left out."""
    for line in text.splitlines():
        try:
            entry = json_from_text(line, OutputError)
        except OutputError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("frame"), int):
            yield entry


def _stamp(path: Path) -> _Stamp:
    """Return values that change when a file is replaced; None without it."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _holds(result: UInt8Array, drawn: UInt8Array) -> bool:
    """Return whether the objects of a drawn mask have the same pixels in a result."""
    ids = np.flatnonzero(np.bincount(drawn.ravel(), minlength=256)[1:]) + 1
    if ids.size == 0:
        return False
    table = np.zeros(256, np.uint8)
    table[ids] = ids
    return bool(np.array_equal(table[result], drawn))


def _without(values: Mapping[str, str], key: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if name != key}

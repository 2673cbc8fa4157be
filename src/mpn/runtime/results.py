"""Read the output folder of a run that is finished, interrupted or killed.

Only the report and the list of the frames are read when the folder is opened. Masks, probabilities
and the frames of the video are read on request.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.files import check_plain_file
from mpn._common.records import json_from_text, record_from_json
from mpn.errors import InputError, MaskError, OutputError, VideoError
from mpn.masks import load_labels
from mpn.runtime.media.video import VideoSource, open_video
from mpn.runtime.media.video_images import ImageSequence
from mpn.runtime.media.writers import crc32_of_frame
from mpn.runtime.session.earlier import EarlierFrames, load_earlier_frames, load_earlier_run
from mpn.runtime.session.layout import DAVIS_EXTRAS, ResultPaths
from mpn.types import MAX_OBJECT_ID, Float32Array, Frame, Track, UInt8Array

_GIVE_VIDEO = "give the video of the run with --video PATH"


@dataclass(frozen=True)
class ResultFrame:
    """One frame of a run.

    Attributes:
        index: Index of the frame in its video, from 0.
        name: Name of its mask, without suffix.
        pts_s: Presentation time in seconds, rounded to 6 digits.
        tracks: One entry per object.
        mask_sha256: Digest of the mask as the run wrote it; None before 0.3, or without masks.
        frame_crc32: Checksum of the pixels; None before 0.3, and if a GPU decoded the video.
    """

    index: int
    name: str
    pts_s: float
    tracks: tuple[Track, ...]
    mask_sha256: str | None = None
    frame_crc32: str | None = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the tracked objects."""
        return tuple(track.object_id for track in self.tracks)


@dataclass(frozen=True)
class _Line:
    """One line of tracks.jsonl."""

    frame: int
    name: str
    pts_s: float
    objects: tuple[Track, ...]
    mask_sha256: str | None = None
    frame_crc32: str | None = None


@dataclass(frozen=True)
class _Video:
    source: str
    size_hw: tuple[int, int]
    fps: str
    path: str | None = None
    sample_aspect_ratio: str | None = None


@dataclass(frozen=True)
class _Fingerprint:
    masks: Mapping[str, str]


@dataclass(frozen=True)
class _Report:
    """Fields of run.json that this module reads."""

    state: str
    saved: tuple[str, ...]
    object_ids: tuple[int, ...]
    video: _Video
    fingerprint: _Fingerprint
    object_names: Mapping[str, str] | None = None


class Results:
    """Results of a run; create with :func:`open_results`.

    Attributes:
        paths: Paths of the run's files.
        report: Contents of run.json, or of run.partial.json after a killed run.
        state: ``"complete"``, ``"interrupted"``, ``"failed"``, or ``"running"`` also after a kill.
        frames: The frames that have results, in order.
        object_ids: Ids of all objects, ascending.
        object_names: Names by id, of the objects that have one.
        given: Indices of the frames with a mask of the user, ascending.
        saved: Kinds of results that the run wrote.
        video_address: The video as the user named it, without a password.
        size_hw: (height, width) of the frames in pixels.
        fps: Average frame rate.
        sample_aspect_ratio: Shown width of a pixel by its height; None: 1, unknown, or before 0.3.
    """

    def __init__(
        self,
        paths: ResultPaths,
        report: Mapping[str, Any],
        fields: _Report,
        frames: Sequence[ResultFrame],
    ) -> None:
        self.paths, self.report = paths, report
        self.state = fields.state
        self.saved = frozenset(fields.saved)
        self.frames = tuple(frames)
        ids = {object_id for frame in frames for object_id in frame.object_ids}
        self.object_ids = tuple(sorted(ids | set(fields.object_ids)))
        self.object_names = {int(key): name for key, name in (fields.object_names or {}).items()}
        self.given = tuple(sorted(map(int, fields.fingerprint.masks)))
        self.video_address = fields.video.source
        self.size_hw = fields.video.size_hw
        self.fps = Fraction(fields.video.fps)
        ratio = fields.video.sample_aspect_ratio
        self.sample_aspect_ratio = None if ratio is None else Fraction(ratio)
        self._video_path = fields.video.path
        self._by_index = {frame.index: frame for frame in frames}

    def frame(self, index: int) -> ResultFrame:
        """Return a frame by its index in the video.

        Raises:
            InputError: If the run has no result of it.
        """
        found = self._by_index.get(index)
        if found is None:
            raise InputError(
                f"{self.paths.folder} has no frame {index}: it has frames "
                f"{self.frames[0].index} to {self.frames[-1].index}"
            )
        return found

    def name_of(self, object_id: int) -> str:
        """Return the name of an object; ``object <id>`` without one."""
        return self.object_names.get(object_id, f"object {object_id}")

    def mask_path(self, index: int) -> Path:
        """Return the path of the mask of a frame; it may not exist."""
        return self.paths.masks / f"{self.frame(index).name}.png"

    def labels(self, index: int) -> UInt8Array:
        """Read the mask of a frame.

        Returns:
            (H, W) uint8: 0 background, object ids 1..254.

        Raises:
            InputError: If the run has no result of the frame, or saved no masks.
            MaskError: If the file is missing or damaged.
        """
        path = self.mask_path(index)
        if "masks" not in self.saved:
            raise InputError(
                f"the run in {self.paths.folder} saved no masks: run with --save masks"
            )
        if not path.exists():
            raise MaskError(f"no such mask: {path}; run again with --resume, which makes it again")
        return load_labels(path, size_hw=self.size_hw, max_objects=MAX_OBJECT_ID, allow_empty=True)

    def probs(self, index: int) -> dict[int, Float32Array] | None:
        """Read the probabilities of a frame.

        Returns:
            (H, W) float32 in 0..1 by object id. None if the run saved none, or if the mask of the
            frame was changed after the run.

        Raises:
            InputError: If the file is missing or damaged.
        """
        frame = self.frame(index)
        if "probs" not in self.saved or self._is_mask_changed(frame):
            return None
        path = self.paths.probs / f"{frame.name}.npz"
        try:
            check_plain_file(path)
            with np.load(path) as archive:
                probs, ids = archive["probs"], archive["object_ids"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"the probabilities {path} cannot be read ({error})") from error
        if probs.shape != (len(ids), *self.size_hw):
            raise InputError(f"the probabilities {path} are of another video: {probs.shape}")
        return {int(k): p.astype(np.float32) for k, p in zip(ids, probs, strict=True)}

    def _is_mask_changed(self, frame: ResultFrame) -> bool:
        if frame.mask_sha256 is None:
            return False
        try:
            content = self.mask_path(frame.index).read_bytes()
        except OSError:
            return True
        return hashlib.sha256(content).hexdigest() != frame.mask_sha256

    def open_video(
        self, path: str | Path | None = None, *, start: int | None = None, end: int | None = None
    ) -> VideoSource:
        """Open the video of the run again; the caller closes it.

        Args:
            path: The video, if it is at another place now.
            start: Index of the first frame; None for the first one of the run.
            end: Index to stop before; None for the end of the run.

        Raises:
            InputError: If the video is a camera or a stream, is missing, or has another size.
        """
        source = str(path) if path is not None else self._source()
        first = self.frames[0].index if start is None else start
        last = self.frames[-1].index + 1 if end is None else end
        try:
            video = open_video(source, start=first, end=last)
            if isinstance(video, ImageSequence):
                video.close()
                video = open_video(source, start=first, end=last, fps=self.fps)
        except VideoError as error:
            raise VideoError(f"{error}; {_GIVE_VIDEO}") from error
        if video.size_hw != self.size_hw:
            size_hw = video.size_hw
            video.close()
            raise VideoError(
                f"{source} is {size_hw[1]}x{size_hw[0]} but the run in {self.paths.folder} is "
                f"{self.size_hw[1]}x{self.size_hw[0]} (width x height): {_GIVE_VIDEO}"
            )
        return video

    def _source(self) -> str:
        candidates = [c for c in (self._video_path, self.video_address) if c is not None]
        for source in candidates:
            if Path(source).exists() or "%" in Path(source).name:
                return source
        raise VideoError(
            f"the video {self.video_address} of the run in {self.paths.folder} is not there any "
            f"more, or is a camera or a stream: {_GIVE_VIDEO}"
        )

    def read_frames(
        self, video: VideoSource, indices: Iterable[int] | None = None
    ) -> Iterator[tuple[ResultFrame, Frame]]:
        """Yield frames of the results with their pixels.

        Args:
            video: An open video of :meth:`open_video`, not read yet.
            indices: Indices of the frames to yield; None for all from the first of ``video``.

        Raises:
            VideoError: If the video is not that of the run: a frame has another name or other
                pixels, or the video ends before the last requested frame. Pixels are compared by
                their checksum, if the run has them.
        """
        first = video.first_frame.index
        every = (index for index in self._by_index if index >= first)
        missing = set(every if indices is None else indices)
        for frame in video:
            if frame.index not in missing:
                continue
            missing.discard(frame.index)
            entry = self.frame(frame.index)
            host = video.host_frame(frame)
            if entry.name != frame.name or (
                entry.frame_crc32 is not None and entry.frame_crc32 != crc32_of_frame(host)
            ):
                raise VideoError(
                    f"{video.address} is not the video of the run in {self.paths.folder}: frame "
                    f"{frame.index} ({frame.name}) differs; {_GIVE_VIDEO}"
                )
            yield entry, host
            if not missing:
                return
        if missing:
            raise VideoError(
                f"{video.address} ends before frame {min(missing)} of the run in "
                f"{self.paths.folder}: {_GIVE_VIDEO}"
            )


def note_of_incomplete(results: Results) -> str:
    """Return the line for a user of results whose run is not complete."""
    return (
        f"the run in {results.paths.folder} is not complete ({results.state}): it has frames "
        f"{results.frames[0].index} to {results.frames[-1].index}"
    )


def open_results(out: Path) -> Results:
    """Open the output folder of a run.

    Args:
        out: The folder given to the run. For a data set in DAVIS layout it may hold several runs:
            then it is ``OUT/_runs/<sequence>`` or ``OUT/<sequence>``.

    Returns:
        The results. The last frames of a killed run are left out if they have no mask.

    Raises:
        InputError: If ``out`` is no output folder, holds several runs, or is damaged.
    """
    paths = _paths_of(out)
    try:
        report, listed = load_earlier_run(paths), load_earlier_frames(paths)
    except OutputError as error:
        raise InputError(f"cannot read the results in {paths.folder}: {error}") from error
    if report is None:
        raise _no_results(out)
    try:
        fields = record_from_json(report, _Report, InputError)
        frames = _frames_of(listed)
    except InputError as error:
        raise InputError(f"the results in {paths.folder} are damaged: {error}") from error
    if "masks" in fields.saved:
        while frames and not (paths.masks / f"{frames[-1].name}.png").is_file():
            frames.pop()
    if not frames:
        raise InputError(f"{paths.folder} holds no result of any frame: run again")
    return Results(paths, report, fields, frames)


def _paths_of(out: Path) -> ResultPaths:
    if out.parent.name == DAVIS_EXTRAS:
        return ResultPaths(out.parent.parent, out.parent.parent / out.name, out)
    plain = ResultPaths(out, out / "masks", out)
    if _has_report(plain):
        return plain
    extras = out.parent / DAVIS_EXTRAS / out.name
    if extras.is_dir():
        return ResultPaths(out.parent, out, extras)
    runs = out / DAVIS_EXTRAS
    folders = sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders[:5]) + ", ..." * (len(folders) > 5)
        raise InputError(
            f"{out} holds {len(folders)} runs ({names}): give one, {runs / folders[0].name}"
        )
    if not folders:
        raise _no_results(out)
    return ResultPaths(out, out / folders[0].name, folders[0])


def _has_report(paths: ResultPaths) -> bool:
    return paths.run_json.is_file() or paths.run_partial_json.is_file()


def _no_results(out: Path) -> InputError:
    state = "is no output folder of a run" if out.exists() else "does not exist"
    return InputError(f"{out} {state}: give the folder that mpn-run wrote, which has run.json")


def _frames_of(listed: EarlierFrames) -> list[ResultFrame]:
    frames = []
    for text, entry in zip(listed.lines, listed.entries, strict=True):
        if entry.name not in listed.names:
            raise InputError(f"tracks.jsonl names a frame {entry.name!r}")
        line = record_from_json(json_from_text(text, InputError), _Line, InputError)
        frames.append(
            ResultFrame(
                line.frame,
                line.name,
                line.pts_s,
                line.objects,
                line.mask_sha256,
                line.frame_crc32,
            )
        )
    return frames

"""Write the review of a run from its output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mpn._common.files import write_bytes_atomically
from mpn.errors import InputError, VideoError
from mpn.runtime.results import Results, note_of_incomplete, open_results
from mpn.runtime.review.builder import (
    Correction,
    Review,
    RunFacts,
    SeriesBuilder,
    Thumbnail,
    WorstFrame,
    info_of,
    sheet_positions,
    strongest_corrections,
    worst_frame,
)
from mpn.runtime.review.page import html_of_review
from mpn.runtime.review.pictures import correction_pictures, thumbnail
from mpn.runtime.review.series import frame_reliability
from mpn.runtime.review.worst import worst_positions
from mpn.runtime.review.writer import (
    check_replaceable_review,
    load_labels_before,
    mask_files_of,
)
from mpn.types import UInt8Array


def write_review(
    out: Path,
    path: Path | None = None,
    *,
    video: Path | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Write the review of an output folder, finished or not.

    Args:
        out: See :func:`mpn.runtime.results.open_results`.
        path: The file; None for ``review.html`` in the folder.
        video: The video, if it was moved. Without a video the pictures show the masks alone.
        on_note: Called with one line if the run is not complete.

    Returns:
        The path of the file.

    Raises:
        InputError: If the folder cannot be read, its run saved no masks, or ``video`` is not the
            video of the run.
        OutputError: If the file cannot be written, or is not a review.
    """
    results = open_results(out)
    target = results.paths.review if path is None else path
    check_replaceable_review(target)
    if "masks" not in results.saved:
        raise InputError(f"the run in {results.paths.folder} saved no masks: run with --save masks")
    if on_note is not None and results.state != "complete":
        on_note(note_of_incomplete(results))
    notes: tuple[str, ...] = ()
    try:
        review = review_of_results(results, has_video=True, video=video)
    except VideoError as error:
        if video is not None:
            raise
        notes = (f"the pictures show the masks alone: {error}",)
        review = review_of_results(results, has_video=False)
    page = html_of_review(review, _facts_of(results, out, notes))
    write_bytes_atomically(target, page)
    return target


def _facts_of(results: Results, out: Path, notes: tuple[str, ...]) -> RunFacts:
    address = results.video_address
    return RunFacts(
        title=Path(address).stem or address,
        video=address,
        out=out,
        size_hw=results.size_hw,
        masks=mask_files_of(results.report),
        object_names=results.object_names,
        state=results.state,
        notes=notes,
    )


def _pixels(results: Results, video: Path | None, indices: list[int]) -> Iterator[UInt8Array]:
    """Yield (H, W, 3) uint8 RGB of each index, ascending."""
    with results.open_video(video, end=indices[-1] + 1) as source:
        for _, frame in results.read_frames(source, indices):
            yield frame.rgb


def review_of_results(results: Results, *, has_video: bool, video: Path | None = None) -> Review:
    """Collect the pictures and figures of a run.

    Args:
        results: The run.
        has_video: Whether the frames are read; otherwise the pictures show the masks alone.
        video: The video, if it was moved.

    Raises:
        InputError: If a mask is missing or damaged.
        VideoError: If the video is missing or not that of the run.
    """
    series = SeriesBuilder()
    for entry in results.frames:
        series.add(entry)
    worst_at = worst_positions([frame_reliability(entry.tracks) for entry in results.frames])
    sheet_at = sheet_positions(len(results.frames))
    before_at = {
        at: path
        for at, entry in enumerate(results.frames)
        if any(track.state == "given" for track in entry.tracks)
        and (path := results.paths.before / f"{entry.name}.png").is_file()
    }
    positions = sorted({*worst_at, *sheet_at, *before_at})
    indices = [results.frames[at].index for at in positions]
    frames: Iterator[UInt8Array | None] = iter([None] * len(indices))
    if has_video:
        frames = _pixels(results, video, indices)
    worst: dict[int, WorstFrame] = {}
    sheet: list[Thumbnail] = []
    corrections: list[Correction] = []
    for at, rgb in zip(positions, frames, strict=True):
        info, labels = info_of(results.frames[at]), results.labels(results.frames[at].index)
        if at in worst_at:
            worst[at] = worst_frame(info, labels, rgb)
        if at in sheet_at:
            sheet.append(Thumbnail(info, thumbnail(rgb, labels)))
        if at in before_at:
            before = load_labels_before(before_at[at], results.size_hw)
            if before is not None:
                pictures = correction_pictures(rgb, before, labels)
                corrections = strongest_corrections([*corrections, Correction(info, pictures)])
    ranked = [worst[at] for at in worst_at]
    return Review(series.indices, series.objects, sheet, ranked, corrections)

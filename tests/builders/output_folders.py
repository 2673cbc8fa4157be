"""Write output folders of a run with given masks, without running networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from mpn._common.files import save_json
from mpn.runtime.media.video import open_video
from mpn.runtime.media.writers import MaskWriter, ProbsWriter, TracksWriter
from mpn.runtime.session.layout import RUN_JSON_SCHEMA, result_paths
from mpn.types import StepResult, Track, UInt8Array


def write_output_folder(
    out: Path,
    video: Path,
    labels: Sequence[UInt8Array],
    *,
    start: int = 0,
    fps: Fraction | None = None,
    names: Mapping[int, str] | None = None,
    with_probs: bool = False,
    state: str = "complete",
) -> Path:
    """Write what a run of this version writes, and return ``out``.

    Args:
        out: The folder.
        video: An existing video.
        labels: (H, W) uint8 of each frame from ``start``.
        start: Index of the first frame.
        fps: Frame rate of a folder of images.
        names: Names of the objects.
        with_probs: Save probabilities too: the labels, blurred.
        state: Of run.json; "running": the run was killed.
    """
    object_ids = tuple(int(k) for k in np.unique(np.stack(labels)) if k)
    with open_video(video, start=start, end=start + len(labels), fps=fps) as source:
        paths = result_paths(out, source)
        paths.masks.mkdir(parents=True)
        paths.folder.mkdir(parents=True, exist_ok=True)
        masks = MaskWriter(paths.masks)
        writers = [TracksWriter(paths.tracks, masks=masks, has_checksums=True), masks]
        if with_probs:
            paths.probs.mkdir()
            writers.append(ProbsWriter(paths.probs))
        for frame, mask in zip(source, labels, strict=True):
            result = _result(frame.index, mask, object_ids)
            for writer in writers:
                writer.write(frame, result)
        if state == "running":
            os.rename(paths.tracks.with_name("tracks.jsonl.partial"), paths.folder / "kept")
            writers[0].discard()
            os.rename(paths.folder / "kept", paths.tracks.with_name("tracks.jsonl.partial"))
        else:
            for writer in writers:
                writer.close()
        report = {
            "schema_version": RUN_JSON_SCHEMA,
            "state": state,
            "saved": ["masks", "probs"] if with_probs else ["masks"],
            "object_ids": list(object_ids),
            "video": {
                "source": source.address,
                "path": os.path.abspath(source.address),
                "size_hw": list(source.size_hw),
                "fps": str(source.fps),
                "start": start,
                "end": None,
            },
            "fingerprint": {"masks": {str(start): "0" * 64}},
            "object_names": {str(key): name for key, name in (names or {}).items()},
        }
    save_json(paths.run_partial_json if state == "running" else paths.run_json, report)
    return out


def _result(index: int, labels: UInt8Array, object_ids: tuple[int, ...]) -> StepResult:
    masks = np.stack([labels == k for k in object_ids]).astype(np.float32)
    probs = np.stack([cv2.GaussianBlur(mask, (0, 0), 1.5) for mask in masks])
    tracks = []
    for k, mask in zip(object_ids, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box = (x, y, x + width, y + height) if width else None
        state = "tracked" if width else "lost"
        tracks.append(Track(k, state, "propagation", int(mask.sum()), box, 0.9))
    return StepResult(index, labels, probs, object_ids, tuple(tracks))

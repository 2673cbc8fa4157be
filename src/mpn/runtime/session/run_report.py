"""Count what a run does, and make its run.json."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from mpn.runtime.finetune.plan import FinetunePlan, finetune_as_json
from mpn.runtime.media.video import VideoSource
from mpn.runtime.media.video_images import ImageSequence
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.layout import RUN_JSON_SCHEMA, ResultPaths
from mpn.runtime.session.outputs import Outputs
from mpn.runtime.session.report import StageStatistics, machine_facts, versions
from mpn.runtime.session.request import Masks, RunRequest
from mpn.types import StepResult


class RunReport:
    """Figures of one run; time counts from here.

    Args:
        request: Of the run.
        video: Open; not iterated yet.
        masks: Masks of the user.
        pipeline: Open.
        paths: Paths of the results.
        plan: Whether and how the networks are fine-tuned.
        fingerprint: Of the inputs.

    Attributes:
        done: Finished frames, kept ones included.
        computed: Frames that this run computed.
        resumed_at: See :class:`mpn.runtime.session.resume.Resumed`; None if nothing is resumed.
        statistics: Seconds by stage.
    """

    def __init__(
        self,
        request: RunRequest,
        video: VideoSource,
        masks: Masks,
        pipeline: Pipeline,
        paths: ResultPaths,
        plan: FinetunePlan,
        fingerprint: dict[str, Any],
    ) -> None:
        self._request, self._video, self._masks = request, video, masks
        self._pipeline, self._paths, self._plan = pipeline, paths, plan
        self._fingerprint = fingerprint
        self._first_index = video.first_frame.index
        self._started_s = time.perf_counter()
        self._finetune_s = 0.0
        self._ids: set[int] = set()
        self._found_ids: set[int] = set()
        self._lost_ids: set[int] = set()
        self.done = self.computed = 0
        self.resumed_at: int | None = None
        self.statistics = StageStatistics()

    def add_backward(self, result: StepResult) -> None:
        """Count a frame of a backward pass, which is not finished yet."""
        self.statistics.add(result.timings)
        self._finetune_s += result.timings.get("finetune", 0.0)

    def add(self, result: StepResult, *, is_earlier: bool, waited_s: float) -> None:
        """Count a finished frame.

        Args:
            result: Its result.
            is_earlier: Whether it was kept from an earlier run.
            waited_s: Seconds of waiting for the writers.
        """
        self.done += 1
        self._ids |= set(result.object_ids)
        if is_earlier:  # it has no tracks
            present = np.flatnonzero(np.bincount(result.labels.ravel(), minlength=256))
            self._found_ids |= set(present.tolist())
        self._found_ids |= {track.object_id for track in result.tracks if track.state == "tracked"}
        self._lost_ids |= {track.object_id for track in result.tracks if track.state == "lost"}
        if not is_earlier:
            self.computed += 1
            self.statistics.add({**result.timings, "wait for writers": waited_s})
            self._finetune_s += result.timings.get("finetune", 0.0)

    def as_json(
        self,
        state: str,
        *,
        error: str | None = None,
        outputs: Outputs | None = None,
    ) -> dict[str, Any]:
        """Return the contents of run.json.

        Args:
            state: ``"running"``, ``"complete"``, ``"interrupted"`` or ``"failed"``.
            error: Message of the error that ended the run.
            outputs: The files; None before any is written.
        """
        video, engines, request = self._video, self._pipeline.engines, self._request
        wall_s = time.perf_counter() - self._started_s
        finetune_s = self._finetune_s
        return {
            "schema_version": RUN_JSON_SCHEMA,
            "state": state,
            "error": error,
            "frames": self.done,
            "frames_computed": self.computed,
            "wall_s": round(wall_s, 3),
            "fps": round(self.computed / wall_s, 3),
            "fps_after_finetune": round(self.computed / (wall_s - finetune_s), 3),
            "stages": self.statistics.as_json(),
            "backend": {
                "requested": request.backend,
                "used": engines.backend,
                "note": engines.backend_note,
                "threads": request.threads,
            },
            "engine": {
                "name": engines.manifest.name,
                "is_shipped": request.engine_dir is None,
                "licence": engines.manifest.provenance.licence,
                "digests": dict(engines.digests),
            },
            "options": self._pipeline.options.as_json(),
            "finetune": self._finetuning(finetune_s),
            "video": {
                "source": video.address,
                "path": _path_of(video),
                "size_hw": list(video.size_hw),
                "fps": str(video.fps),
                "sample_aspect_ratio": video.sample_aspect_ratio and str(video.sample_aspect_ratio),
                "start": self._first_index,
                "end": request.end,
            },
            "decode": {
                "requested": request.decode,
                "used": video.decoder,
                "note": video.decoder_note,
            },
            "masks": self._masks.as_json(),
            "object_ids": sorted(self._ids),
            **({"object_names": self._object_names()} if self._masks.names else {}),
            "saved": sorted(request.save - (outputs.left_out if outputs else frozenset())),
            "files": outputs.file_digests() if outputs and state == "complete" else {},
            "warnings": [
                *self._masks.notes,
                *video.warnings,
                *(
                    f"object {entry['object_id']}, {entry['role']} network: {entry['note']}"
                    for entry in self._pipeline.finetune_report()
                    if entry["steps"] and not entry["finetuned"]
                ),
                *self._pipeline.finetune_warnings(),
                *(
                    f"object {object_id} was found in no frame but those with its masks"
                    for object_id in sorted(self._lost_ids - self._found_ids)
                ),
                *(outputs.warnings if outputs else ()),
            ],
            "out": self.folders,
            "resumed_at": self.resumed_at,
            "versions": versions(),
            "machine": machine_facts(),
            "fingerprint": self._fingerprint,
        }

    @property
    def folders(self) -> dict[str, str]:
        """Paths of the results, as ``out`` of run.json."""
        return {"masks": str(self._paths.masks), "folder": str(self._paths.folder)}

    def _finetuning(self, finetune_s: float) -> dict[str, Any]:
        options = self._plan.options
        if options is None:
            return {"ran": False, "reason": self._plan.why_not}
        return {
            "ran": True,
            "seconds": round(finetune_s, 3),
            "options": finetune_as_json(options),
            "objects": self._pipeline.finetune_report(),
        }

    def _object_names(self) -> dict[str, str]:
        return {str(object_id): name for object_id, name in sorted(self._masks.names.items())}


def _path_of(video: VideoSource) -> str | None:
    """Return the absolute path of a video; None for a camera or an address."""
    path = video.folder if isinstance(video, ImageSequence) else Path(video.address)
    return os.path.abspath(video.address) if path.exists() else None

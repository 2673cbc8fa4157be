"""Compute the fingerprint of the inputs that a resumed run must share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpn import __version__
from mpn.runtime.finetune.plan import finetune_as_json
from mpn.runtime.media.video import VideoSource
from mpn.runtime.options import FinetuneOptions
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.report import sha256_of_array
from mpn.runtime.session.request import Masks


def fingerprint(
    video: VideoSource, masks: Masks, pipeline: Pipeline, finetune: FinetuneOptions | None
) -> dict[str, Any]:
    """Compute the fingerprint of a run, as JSON types.

    Args:
        video: Open; its first frame is hashed.
        masks: Masks of the user.
        pipeline: Open.
        finetune: Options of fine-tuning; None without it.
    """
    first = video.first_frame
    return {
        "version": __version__,
        "video": {
            "name": video.name,
            "size_hw": list(video.size_hw),
            "first_index": first.index,
            "first_frame_sha256": sha256_of_array(first.rgb),
        },
        "masks": {str(index): mask.sha256 for index, mask in masks.given.items()},
        "engine": dict(pipeline.engines.digests),
        "options": pipeline.options.as_json(),
        "finetune": None if finetune is None else finetune_as_json(finetune),
    }


def without_masks(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint without the masks, see ``Schedule.inputs_of``."""
    return {name: value for name, value in fingerprint.items() if name != "masks"}

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
        "masks": {
            str(index): sha256_of_array(labels)
            for index, labels in ((first.index, masks.first), *sorted(masks.later.items()))
        },
        "engine": dict(pipeline.engines.digests),
        "options": pipeline.options.as_json(),
        "finetune": None if finetune is None else finetune_as_json(finetune),
    }


def fingerprint_up_to(fingerprint: Mapping[str, Any], frame_index: int) -> dict[str, Any]:
    """Return the fingerprint without the masks of later frames, which may change."""
    masks = {k: digest for k, digest in fingerprint["masks"].items() if int(k) <= frame_index}
    return {**fingerprint, "masks": masks}

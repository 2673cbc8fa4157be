"""What must be the same for a run to go on with another one's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mpn import __version__
from mpn.runtime.adapt_options import AdaptOptions
from mpn.runtime.adaptation import adapt_as_json
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.report import sha256_of_array
from mpn.runtime.request import Masks
from mpn.runtime.video import VideoSource


def fingerprint(
    video: VideoSource, masks: Masks, pipeline: Pipeline, adapt: AdaptOptions | None
) -> dict[str, Any]:
    """The fingerprint of a run, as JSON types.

    Args:
        video: Opened; its first frame is looked at.
        masks: The user's.
        pipeline: Open.
        adapt: How its networks are fine-tuned; None: not at all.
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
        "options": asdict(pipeline.options),
        "adapt": None if adapt is None else adapt_as_json(adapt),
    }


def until(fingerprint: Mapping[str, Any], frame_index: int) -> dict[str, Any]:
    """The fingerprint without masks that come into play later: those may change."""
    masks = {k: digest for k, digest in fingerprint["masks"].items() if int(k) <= frame_index}
    return {**fingerprint, "masks": masks}

"""Use the installed package; mypy checks this file in strict mode."""

from pathlib import Path

import numpy as np

import mpn
from mpn import MpnError, Pipeline, PipelineOptions, StepResult, propagate
from mpn.runtime.crf.dense import dense_crf


def areas(video: Path, mask: Path) -> list[int]:
    """Count the object pixels of every frame."""
    return [int((result.labels > 0).sum()) for result in propagate(video, mask)]


def first_result(rgb: np.ndarray, labels: np.ndarray) -> StepResult:
    """Segment one frame after the given one."""
    with Pipeline.from_engines(options=PipelineOptions(size=240)) as pipeline:
        pipeline.start(rgb, labels)
        return pipeline.step(rgb)


def sharpened(prob: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Apply the dense CRF to an (L, H, W) probability."""
    return dense_crf(
        -np.log(prob),
        rgb,
        sxy_gaussian=1,
        compat_gaussian=5,
        sxy_bilateral=15,
        srgb_bilateral=7,
        compat_bilateral=9,
        iterations=5,
    )


def version() -> str:
    """Return the version, or raise the package's own error."""
    if not mpn.__version__:
        raise MpnError("no version")
    return mpn.__version__

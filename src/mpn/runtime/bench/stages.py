"""Count bytes of stages outside the networks, time that of other threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from mpn.masks import png_from_labels
from mpn.runtime.bench.result import summary_ms
from mpn.runtime.bench.roofline import Cost
from mpn.runtime.media.overlay import OverlayWriter
from mpn.runtime.media.video import open_video
from mpn.types import StepResult, UInt8Array

_SAMPLE_FLOP = 8
"""Bilinear interpolation: four products and four sums."""


@dataclass(frozen=True)
class FrameSizes:
    """Sizes that decide how many bytes a stage reads and writes.

    Attributes:
        objects: K.
        input_hw: (height, width) of the video.
        working_hw: (height, width) of the frame in the pipeline.
        crop_chw: Channels and sides of a crop of the propagation network.
        features_chw: Channels and grid of the features; None without target model.
    """

    objects: int
    input_hw: tuple[int, int]
    working_hw: tuple[int, int]
    crop_chw: tuple[int, int, int]
    features_chw: tuple[int, int, int] | None = None


def stage_costs(sizes: FrameSizes) -> dict[str, Cost]:
    """Count FLOP and bytes of the stages that run no network.

    Each array counts once per stage that reads or writes it, at its full size. Stages that work in
    the boxes of the objects touch less, so their share of the roofline is an upper bound.

    Args:
        sizes: Sizes of the frame.

    Returns:
        Cost by stage.
    """
    count, pixels = sizes.objects, sizes.working_hw[0] * sizes.working_hw[1]
    input_pixels = sizes.input_hw[0] * sizes.input_hw[1]
    channels, crop_pixels = sizes.crop_chw[0], sizes.crop_chw[1] * sizes.crop_chw[2]
    planes = 4 * count * pixels  # P of all objects, float32
    flow = 8 * pixels
    crops = 4 * count * crop_pixels
    costs = {
        # RGB to grey, both grey images, and the flow; DIS itself is a library.
        "flow": (0, 3 * pixels + pixels + 2 * pixels + flow),
        "warp": (_SAMPLE_FLOP * count * pixels, 2 * planes + flow),
        "crop": (
            (_SAMPLE_FLOP * channels + 2 * 3) * count * crop_pixels,
            (3 + 4) * count * crop_pixels + channels * crops,
        ),
        "paste": (_SAMPLE_FLOP * count * crop_pixels, crops + planes),
        "merge": (3 * count * pixels if count > 1 else 0, 2 * planes if count > 1 else 0),
        "output": (0, planes + input_pixels),
    }
    if sizes.features_chw is not None:
        depth, rows, columns = sizes.features_chw
        grid = rows * columns
        costs["target"] = (2 * depth * grid * count, 4 * grid * (depth + count))
    return {
        name: Cost(float(flop), float(nbytes), is_int8=False, is_depthwise=False)
        for name, (flop, nbytes) in costs.items()
    }


def time_other_threads(
    video: Path, labels: UInt8Array, folder: Path, *, frames: int
) -> list[dict[str, Any]]:
    """Time what a run does in other threads: decoding, mask files and overlay.

    Each part runs alone here, with the code of a run. The threads of decoder and encoder stay.

    Args:
        video: A file.
        labels: (H, W) uint8, drawn into each frame.
        folder: Takes the overlay.
        frames: Frames to measure, after the first one.

    Returns:
        One entry per part: ``name``, times per frame and ``bytes``, see :func:`stage_costs`.

    Raises:
        VideoError: If the file cannot be read.
        OutputError: If the overlay cannot be written.
    """
    seconds: dict[str, list[float]] = {"decode": [], "mask PNG": [], "overlay": []}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begun = perf_counter()
        yield
        seconds[name].append(perf_counter() - begun)

    empty = StepResult(0, labels, labels[None].astype("float32"), (1,), ())
    with open_video(video) as source:
        overlay = OverlayWriter(
            folder / "profile.mp4",
            size_hw=source.size_hw,
            fps=source.fps,
            time_base=source.time_base,
        )
        try:
            for frame in _timed_items(source, timed, frames + 1):
                with timed("mask PNG"):
                    png_from_labels(labels)
                with timed("overlay"):
                    overlay.write(frame, empty)
        finally:
            overlay.discard()
    pixels = labels.size
    nbytes = {
        "decode": 3 * pixels // 2 + 3 * pixels,  # YUV 4:2:0, RGB
        "mask PNG": pixels,
        "overlay": 3 * pixels + pixels + 3 * pixels + 3 * pixels // 2,
    }
    return [
        {"name": name, **summary_ms(times[1:] or times), "bytes": float(nbytes[name])}
        for name, times in seconds.items()
    ]


def _timed_items(source: Iterable[Any], timed: Callable[[str], Any], most: int) -> Iterator[Any]:
    items = iter(source)
    for _ in range(most):
        with timed("decode"):
            item = next(items, None)
        if item is None:
            return
        yield item

"""Built-in clip: its frames and its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from mpn._common.cores import limited_cores
from mpn.errors import InputError, OutputError
from mpn.synthetic.scene import Scene
from mpn.types import UInt8Array

CLIP_NAME = "demo"
CLIP_FPS = Fraction(24)
OBJECT_NAMES = {1: "koi", 2: "ball", 3: "leaf"}
MAX_OBJECTS = len(OBJECT_NAMES)
MIN_SIDE_PX = 32
"""Smallest side: below it the objects have only a few pixels."""

_VIDEO_OPTIONS = {"libx264": {"preset": "medium", "crf": "12"}}
_OTHER_VIDEO_OPTIONS = {"b": "16000000"}
"""Options for high quality: compression of the input must not affect the masks."""

_BT709: Final = 1
_LIMITED_RANGE: Final = 1


@dataclass(frozen=True)
class SyntheticFrame:
    """Rendered frame.

    Attributes:
        rgb: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 exact ids: 1 for the koi, 2 for the ball, 3 for the leaf; 0 background.
    """

    rgb: UInt8Array
    labels: UInt8Array


@dataclass(frozen=True)
class ClipPaths:
    """Files of a clip.

    Attributes:
        video: ``clip.mp4``, H.264.
        first_mask: ``first_mask.png``, the ids of frame 0.
        davis_root: Folder with ``Annotations/480p/demo`` and ``ImageSets/2017/val.txt``.
        frames: Number of frames.
    """

    video: Path
    first_mask: Path
    davis_root: Path
    frames: int


def render_clip(
    *,
    frames: int = 48,
    size_hw: tuple[int, int] = (480, 854),
    objects: int = MAX_OBJECTS,
    seed: int = 0,
) -> Iterator[SyntheticFrame]:
    """Render a pond from above with a koi, a ball and a leaf.

    The objects move, rotate, change their size, bend and cover each other; the cobbled floor moves
    slowly the other way. The motion is periodic, so a clip can have any length. In the first 48
    frames the leaf covers up to half of the koi and uncovers it again. A frame depends only on its
    number, the size and the seed, not on the number of frames.

    Args:
        frames: Number of frames.
        size_hw: (height, width) in pixels; the scene is scaled to fit.
        objects: 0 to 3, in the order koi, ball, leaf.
        seed: Seed of textures and noise.

    Yields:
        The frames in order.

    Raises:
        InputError: If an argument is out of its range.
    """
    if frames < 1:
        raise InputError(f"a clip has at least one frame, got {frames}")
    if not 0 <= objects <= MAX_OBJECTS:
        raise InputError(f"the clip has 0 to {MAX_OBJECTS} objects, got {objects}")
    if min(size_hw) < MIN_SIDE_PX:
        raise InputError(
            f"the clip must be at least {MIN_SIDE_PX}x{MIN_SIDE_PX}, got "
            f"{size_hw[1]}x{size_hw[0]} (width x height)"
        )
    return _rendered(Scene(size_hw, objects, seed), frames)


def write_clip(
    directory: Path,
    *,
    frames: int = 48,
    size_hw: tuple[int, int] = (480, 854),
    objects: int = MAX_OBJECTS,
    seed: int = 0,
    on_frame: Callable[[], None] | None = None,
) -> ClipPaths:
    """Write the clip as video, first mask, and ground truth in DAVIS layout.

    Args:
        directory: Output folder; created if missing. Files of these names are replaced.
        frames: Number of frames; see :func:`render_clip`.
        size_hw: Even sides, because H.264 subsamples colours.
        objects: At least one.
        seed: Seed of textures and noise.
        on_frame: Called after each frame.

    Returns:
        Paths of all files.

    Raises:
        InputError: If an argument is out of its range.
        OutputError: If a file cannot be written.
    """
    from mpn._common.files import output_errors, replacing, write_text_atomically
    from mpn.masks import save_labels

    if objects < 1 or size_hw[0] % 2 or size_hw[1] % 2:
        raise InputError(
            f"a clip on disk needs an object and even sides, got {objects} objects and "
            f"{size_hw[1]}x{size_hw[0]} (width x height)"
        )
    rendered = render_clip(frames=frames, size_hw=size_hw, objects=objects, seed=seed)
    annotations = directory / "Annotations" / "480p" / CLIP_NAME
    lists = directory / "ImageSets" / "2017"
    video = directory / "clip.mp4"
    first_mask = directory / "first_mask.png"
    with output_errors(directory):
        for folder in (annotations, lists):
            folder.mkdir(parents=True, exist_ok=True)
        if annotations.is_symlink():
            raise OutputError(
                f"{annotations} is a symbolic link, and nothing is removed through one: remove it"
            )
        for stale in annotations.glob("[0-9]" * 5 + ".png"):
            if int(stale.stem) >= frames:  # a mask of a longer clip
                stale.unlink()
    write_text_atomically(lists / "val.txt", f"{CLIP_NAME}\n")
    with replacing(video) as temporary, _VideoFile(temporary, size_hw) as encoded:
        for number, frame in enumerate(rendered):
            encoded.add(frame.rgb)
            save_labels(annotations / f"{number:05d}.png", frame.labels)
            if number == 0:
                save_labels(first_mask, frame.labels)
            if on_frame is not None:
                on_frame()
    return ClipPaths(video=video, first_mask=first_mask, davis_root=directory, frames=frames)


def _rendered(scene: Scene, frames: int) -> Iterator[SyntheticFrame]:
    for number in range(frames):
        rgb, labels = scene.frame(number)
        yield SyntheticFrame(rgb, labels)


class _VideoFile:
    """H.264 file of RGB frames."""

    def __init__(self, path: Path, size_hw: tuple[int, int]) -> None:
        import av

        from mpn._common.h264 import h264_encoder

        encoder = h264_encoder()
        self._container = av.open(f"file:{path}", "w", format="mp4")
        stream: Any = self._container.add_stream(
            encoder, rate=CLIP_FPS, options=_VIDEO_OPTIONS.get(encoder, _OTHER_VIDEO_OPTIONS)
        )
        stream.height, stream.width = size_hw
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        context.thread_count = limited_cores() or context.thread_count
        self._stream = stream

    def __enter__(self) -> _VideoFile:
        return self

    def add(self, rgb: UInt8Array) -> None:
        """Encode one (H, W, 3) uint8 frame."""
        import av

        picture = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE
        )
        self._container.mux(self._stream.encode(picture))

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        if exc_type is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

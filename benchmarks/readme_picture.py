"""Draw frames of a video with the masks of a run, for the README.

python -m benchmarks.readme_picture    # the demo clip: docs/pictures/demo.jpg
python -m benchmarks.readme_picture --davis-root DAVIS --sequence horsejump-high --at 0 24 48
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mpn._common.files import write_atomically
from mpn._common.images import open_image
from mpn.errors import InputError, MpnError
from mpn.evaluation import load_annotation
from mpn.runtime.media.overlay import draw_overlay
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from mpn.synthetic import render_clip, write_clip

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = REPOSITORY / "docs" / "pictures"
PANEL_HW = (270, 480)
GAP_PX = 6
OPACITY = 0.4
JPEG_QUALITY = 88
RESOLUTION = "480p"


@dataclass(frozen=True)
class Source:
    """A video to segment, and its frames.

    Attributes:
        video: Path as ``mpn-run`` takes it.
        first_mask: Palette PNG of the first frame.
        frames: (H, W, 3) uint8 RGB by frame number.
        name: Text in the corner of the first panel.
    """

    video: Path
    first_mask: Path
    frames: dict[int, np.ndarray]
    name: str


@contextmanager
def demo_clip(at: list[int]) -> Iterator[Source]:
    """Render the demo clip up to the last frame of ``at``."""
    count = max(at) + 1
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip", frames=count)
        rendered = {n: f.rgb for n, f in enumerate(render_clip(frames=count)) if n in at}
        yield Source(clip.video, clip.first_mask, rendered, "rendered clip")


@contextmanager
def davis_sequence(root: Path, sequence: str, at: list[int]) -> Iterator[Source]:
    """Open a sequence of a folder in DAVIS layout.

    Raises:
        InputError: If the sequence or one of the frames is not in the folder.
    """
    video = root / "JPEGImages" / RESOLUTION / sequence
    files = sorted(video.glob("[!.]*.jpg"))
    if not files or max(at) >= len(files):
        raise InputError(f"{video} has {len(files)} frames, expected at least {max(at) + 1}")
    first_mask = root / "Annotations" / RESOLUTION / sequence / f"{files[0].stem}.png"
    frames = {n: np.asarray(open_image(files[n]).convert("RGB")) for n in at}
    yield Source(video, first_mask, frames, f"{sequence}, DAVIS 2016, CC BY-NC 4.0")


def strip_of_overlays(source: Source, engine_dir: Path | None) -> np.ndarray:
    """Segment the video and put its frames side by side.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = RunRequest(
            video=str(source.video),
            masks={None: source.first_mask},
            out=Path(folder) / "out",
            engine_dir=engine_dir,
            save=frozenset({"masks"}),
        )
        masks = Path(run_video(request)["out"]["masks"])
        panels = [
            _panel(rgb, load_annotation(masks / f"{number:05d}.png"), number, source.name)
            for number, rgb in source.frames.items()
        ]
    gap = np.full((PANEL_HW[0], GAP_PX, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _panel(rgb: np.ndarray, labels: np.ndarray, number: int, name: str) -> np.ndarray:
    drawn = draw_overlay(rgb, labels, opacity=OPACITY)
    panel = Image.fromarray(cv2.resize(drawn, PANEL_HW[::-1], interpolation=cv2.INTER_AREA))
    _write(panel, "frame 0: given mask" if number == 0 else f"frame {number}", 6)
    if number == 0:
        _write(panel, name, PANEL_HW[0] - 24)
    return np.asarray(panel)


def _write(panel: Image.Image, text: str, y: int) -> None:
    ImageDraw.Draw(panel).text(
        (8, y), text, "white", ImageFont.load_default(15), stroke_width=2, stroke_fill="black"
    )


def main() -> int:
    """Parse the arguments, run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine-dir", type=Path, default=None, help="default: the package's own")
    parser.add_argument("--at", type=int, nargs="+", default=[0, 22, 46], metavar="FRAME")
    parser.add_argument("--davis-root", type=Path, default=None, help="a folder in DAVIS layout")
    parser.add_argument("--sequence", default="horsejump-high", help="with --davis-root")
    parser.add_argument("-o", "--output", type=Path, default=None, help="a JPEG file")
    options = parser.parse_args()
    at = sorted(options.at)
    try:
        if options.davis_root is None:
            output = options.output or PICTURES / "demo.jpg"
            opened = demo_clip(at)
        else:
            output = options.output or PICTURES / "davis.jpg"
            opened = davis_sequence(options.davis_root, options.sequence, at)
        with opened as source:
            strip = strip_of_overlays(source, options.engine_dir)
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, lambda file: file.write(buffer.getvalue()))
    except MpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

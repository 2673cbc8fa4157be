"""Make docs/overlay.png: frames of the demo clip under the masks of a real run on it.

python benchmarks/readme_picture.py [--engine-dir DIR] [--at 0 24 46] [-o docs/overlay.png]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mpn._common.files import write_atomically
from mpn.errors import MpnError
from mpn.evaluation import load_annotation
from mpn.runtime.overlay import draw_overlay
from mpn.runtime.request import RunRequest
from mpn.runtime.session import run_video
from mpn.synthetic import render_clip, write_clip

REPOSITORY = Path(__file__).resolve().parents[1]
PANEL_HW = (270, 480)
GAP_PX = 6
OPACITY = 0.4


def strip_of_overlays(at: list[int], engine_dir: Path | None) -> np.ndarray:
    """Run the demo clip as far as needed and put the frames ``at`` side by side.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    frames = max(at) + 1
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip", frames=frames)
        request = RunRequest(
            video=str(clip.video),
            masks={None: clip.first_mask},
            out=Path(folder) / "out",
            engine_dir=engine_dir,
            save=frozenset({"masks"}),
        )
        report = run_video(request)
        masks = Path(report["out"]["masks"])
        panels = [
            _panel(frame.rgb, load_annotation(masks / f"{number:05d}.png"), number)
            for number, frame in enumerate(render_clip(frames=frames))
            if number in at
        ]
    gap = np.full((PANEL_HW[0], GAP_PX, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _panel(rgb: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    drawn = draw_overlay(rgb, labels, opacity=OPACITY)
    panel = cv2.resize(drawn, PANEL_HW[::-1], interpolation=cv2.INTER_AREA)
    text = "frame 0: given" if number == 0 else f"frame {number}"
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(
            panel, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA
        )
    return panel


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine-dir", type=Path, default=None, help="default: the package's own")
    parser.add_argument("--at", type=int, nargs="+", default=[0, 22, 46], metavar="FRAME")
    parser.add_argument("-o", "--output", type=Path, default=REPOSITORY / "docs" / "overlay.png")
    options = parser.parse_args()
    try:
        picture = Image.fromarray(strip_of_overlays(sorted(options.at), options.engine_dir))
        write_atomically(
            options.output, lambda file: picture.save(file, format="PNG", optimize=True)
        )
    except MpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

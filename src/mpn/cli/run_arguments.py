"""What is typed after ``mpn run``, turned into what the runtime takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mpn.runtime.outputs import SaveKind

_FRAME_AND_FILE = re.compile(r"(\d+):(.+)", re.DOTALL)


def missing_video(engine_dir: Path | None) -> str:
    """What to say when the video was forgotten."""
    if engine_dir is not None and engine_dir.suffix and not engine_dir.is_dir():
        return (
            f"VIDEO is missing, and {engine_dir} is no engine directory; did you mean "
            f"mpn-run {engine_dir} --mask FIRST.png, with the engines of the package?"
        )
    return "VIDEO is missing: mpn-run clip.mp4 --mask FIRST.png"


def masks_by_frame(given: list[str]) -> dict[int | None, Path]:
    """``--mask``: FILE or FRAME:FILE, each -> frame index (None: the first frame) and file."""
    if not given:
        raise typer.BadParameter(
            "no mask was given: add --mask FIRST.png, the mask of the first frame"
        )
    masks: dict[int | None, Path] = {}
    for text in given:
        match = _FRAME_AND_FILE.fullmatch(text)
        frame, path = (int(match[1]), Path(match[2])) if match else (None, Path(text))
        if frame in masks:
            which = "the first frame" if frame is None else f"frame {frame}"
            raise typer.BadParameter(
                f"two masks for {which}, {masks[frame]} and {path}: "
                "give --mask FRAME:FILE for those of later frames"
            )
        masks[frame] = path
    return masks


def save_kinds(text: str) -> frozenset[SaveKind]:
    """``--save``: kinds separated by commas."""
    known: dict[str, SaveKind] = {
        "masks": "masks", "overlay": "overlay", "probs": "probs", "rle": "rle",
    }  # fmt: skip
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"--save takes {', '.join(known)}, separated by commas, not '{name}'"
            )
    return frozenset(known[name] for name in names)


def rate_from_text(text: str | None) -> Any:
    """``--fps``: a fraction, or None if it was not given."""
    if text is None:
        return None
    from fractions import Fraction

    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(
            f"--fps takes a rate like 25 or 30000/1001, not '{text}'"
        ) from error

"""What is typed after ``mpn run``, turned into what the runtime takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mpn.runtime.adapt_options import AdaptOptions
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


@dataclass(frozen=True, kw_only=True)
class AdaptArguments:
    """The ``--adapt-*`` options as they were typed; None or False: not given."""

    off: bool
    off_by: str
    steps: int | None
    seconds: float | None
    size: int | None
    scope: str | None
    cache: Path | None
    no_cache: bool
    seed: int | None

    @property
    def are_given(self) -> bool:
        """Whether fine-tuning was asked for by one of them; a seed alone asks for nothing."""
        given = (self.steps, self.seconds, self.size, self.scope, self.cache)
        return any(value is not None for value in given)

    def options(self) -> AdaptOptions | None:
        """What the runtime takes; None: no fine-tuning.

        Raises:
            typer.BadParameter: If they contradict each other.
            InputError: If a value is out of range.
        """
        if self.off:
            if self.are_given:
                raise typer.BadParameter(f"{self.off_by} contradicts the other --adapt options")
            return None
        if self.cache is not None and self.no_cache:
            raise typer.BadParameter("--adapt-cache contradicts --no-adapt-cache")
        from mpn.runtime.adapt_options import AdaptOptions

        given: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "size": self.size,
            "scope": self.scope,
            "cache_dir": None if self.no_cache else self.cache or default_adapt_cache(),
        }
        if self.seed is not None:
            given["seed"] = self.seed
        return AdaptOptions(**given)


def default_adapt_cache() -> Path | None:
    """Return the default folder of fine-tuned weights; None if the user has no home."""
    from mpn._common.cache_dirs import user_cache_dir

    return user_cache_dir("adapt")

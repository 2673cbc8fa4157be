"""Options of ``mpn run`` by name, for the command line and rows of a batch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpn.errors import InputError
from mpn.runtime.convert.formats import FORMATS

if TYPE_CHECKING:
    from mpn.engines.open import Backend
    from mpn.runtime.options import FinetuneOptions
    from mpn.runtime.session.request import RunRequest

_KINDS = ("masks", "overlay", "probs", "rle")
"""Values of ``--save`` that are no formats; a test compares them with ``SaveKind``."""

_FRAME_AND_FILE = re.compile(r"(\d+):(.+)", re.DOTALL)
_OTHER_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?):.+", re.DOTALL)
"""A number that is no frame; a drive (C:) or an address is none."""


def masks_from_texts(given: Iterable[str]) -> dict[int | None, Path]:
    """Convert texts to a file per frame index; ``~`` is the home folder.

    See :func:`mask_names`.
    """
    return {
        frame: Path(os.path.expanduser(name)) for frame, name in mask_names(given, Path()).items()
    }


def mask_names(given: Iterable[str], folder: Path) -> dict[int | None, str]:
    """Split texts FILE or FRAME:FILE into a file name per frame index.

    The key None stands for the first frame. A text that is the name of an existing file is FILE.

    Args:
        given: The texts.
        folder: Folder that relative names start from.

    Raises:
        InputError: If there is no text, a frame is no index, or two texts are for one frame.
    """
    masks: dict[int | None, str] = {}
    for text in given:
        exists = os.path.exists(folder / text)
        match = None if exists else _FRAME_AND_FILE.fullmatch(text)
        if match is None and not exists and (wrong := _OTHER_NUMBER.fullmatch(text)):
            raise InputError(
                f"FRAME of --mask must be a whole number from 0, such as 12:m.png, not '{wrong[1]}'"
            )
        frame, name = (int(match[1]), match[2]) if match else (None, text)
        if frame in masks:
            which = "the first frame" if frame is None else f"frame {frame}"
            raise InputError(
                f"two masks for {which}, {masks[frame]} and {name}: "
                "give --mask FRAME:FILE for those of other frames"
            )
        masks[frame] = name
    if not masks:
        raise InputError("no mask was given: add --mask FIRST.png, the mask of the first frame")
    return masks


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run: names and meaning of ``mpn run --help``.

    Engines, backend and threads are not part of it.

    Raises:
        InputError: If a value is not allowed, or two contradict each other.
    """

    direction: Literal["both", "forward", "backward"] | None = None
    fast: bool = False
    one_shot: Literal["auto", "target", "osvos", "both", "off"] | None = None
    no_osvos: bool = False
    osvos_every: int | None = None
    crf: bool | None = None
    finetune: bool | None = None
    finetune_steps: int | None = None
    finetune_seconds: float | None = None
    finetune_size: int | None = None
    finetune_scope: Literal["all", "head"] | None = None
    finetune_cache: str | None = None
    no_finetune_cache: bool = False
    seed: int | None = None
    size: int | None = None
    start: int | None = None
    end: int | None = None
    fps: str | None = None
    decode: Literal["auto", "cpu", "nvdec"] = "auto"
    save: str = "masks,overlay"
    review: bool = True

    def __post_init__(self) -> None:
        if self.no_osvos and self.one_shot in ("osvos", "both"):
            raise InputError(f"--no-osvos contradicts --one-shot {self.one_shot}")
        if self.osvos_every is not None:
            if self.no_osvos:
                raise InputError("--no-osvos contradicts --osvos-every")
            if self.one_shot in ("target", "off"):
                raise InputError(f"--one-shot {self.one_shot} contradicts --osvos-every")
        if self._skips_finetuning and self._wants_finetuning:
            name = "--fast" if self.fast else "--no-finetune"
            raise InputError(f"{name} contradicts the --finetune options")
        if not self._skips_finetuning and self.finetune_cache and self.no_finetune_cache:
            raise InputError("--finetune-cache contradicts --no-finetune-cache")
        takes = ", ".join([*_KINDS, *FORMATS])
        for name in self._saved:
            if name not in _KINDS and name not in FORMATS:
                raise InputError(f"--save takes {takes}, separated by commas, not '{name}'")
        if not self._saved:
            raise InputError(
                f"--save takes at least one of {takes}, separated by commas, not '{self.save}'"
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all options."""
        return tuple(field.name for field in fields(cls))

    def given(self) -> dict[str, Any]:
        """Return the options that are not the default."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def as_json(self) -> dict[str, Any]:
        """Return all options as JSON types."""
        return asdict(self)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats that the results are converted to at the end, which need the masks."""
        return tuple(name for name in self._saved if name in FORMATS)

    def request(
        self,
        *,
        video: str,
        masks: Mapping[int | None, Path],
        out: Path | None,
        engine_dir: str | Path | None,
        backend: Backend,
        threads: int | None,
        resume: bool,
        build: bool = True,
    ) -> RunRequest:
        """Return the request of a run with these options.

        Args:
            video: See :class:`mpn.runtime.session.request.RunRequest`, as for the others.
            masks: By frame index.
            out: Output folder.
            engine_dir: Engines.
            backend: Backend.
            threads: CPU threads; at most the usable cores are used, with MpnWarning.
            resume: Whether to continue an earlier run.
            build: Whether to build missing plans.

        Raises:
            InputError: If a value is out of range.
        """
        from mpn.runtime.options import UNSET, CrfOptions, OsvosOptions, PipelineOptions
        from mpn.runtime.session.request import RunRequest

        is_crf_off = self.crf is False or (self.fast and self.crf is None)
        options = PipelineOptions(
            size=UNSET if self.size is None else self.size,
            flip_tta=False if self.fast else UNSET,
            one_shot=UNSET if self.one_shot is None else self.one_shot,
            osvos=OsvosOptions(
                mode="off" if self.no_osvos else UNSET,
                every=UNSET if self.osvos_every is None else self.osvos_every,
            ),
            crf=CrfOptions() if self.crf else None if is_crf_off else UNSET,
            finetune=self._finetuning(),
        )
        saved: Any = frozenset(name for name in self._saved if name in _KINDS)
        return RunRequest(
            video=video,
            masks=masks,
            direction=self.direction,
            out=out,
            engine_dir=engine_dir,
            backend=backend,
            threads=threads,
            options=options,
            must_finetune=self._wants_finetuning,
            start=self.start,
            end=self.end,
            fps=rate_from_text(self.fps),
            decode=self.decode,
            save=saved | {"masks"} if self.formats else saved,
            review=self.review,
            resume=resume,
            build=build,
        )

    @property
    def _saved(self) -> list[str]:
        return [name.strip() for name in self.save.split(",") if name.strip()]

    @property
    def _skips_finetuning(self) -> bool:
        return self.fast or self.finetune is False

    @property
    def _wants_finetuning(self) -> bool:
        """Whether an option requires fine-tuning; a seed alone does not."""
        given = (
            self.finetune_steps,
            self.finetune_seconds,
            self.finetune_size,
            self.finetune_scope,
            self.finetune_cache,
        )
        return bool(self.finetune) or any(value is not None for value in given)

    def _finetuning(self) -> FinetuneOptions | None:
        if self._skips_finetuning:
            return None
        from mpn.runtime.options import FinetuneOptions

        cache = None if self.finetune_cache is None else Path(self.finetune_cache)
        given: dict[str, Any] = {
            "steps": self.finetune_steps,
            "seconds": self.finetune_seconds,
            "size": self.finetune_size,
            "scope": self.finetune_scope,
            "cache_dir": None if self.no_finetune_cache else cache or default_finetune_cache(),
        }
        if self.seed is not None:
            given["seed"] = self.seed
        return FinetuneOptions(**given)


def rate_from_text(text: str | None) -> Any:
    """Convert ``--fps`` to a fraction; None if it was not given.

    Raises:
        InputError: If it is no rate within the bounds.
    """
    if text is None:
        return None
    from fractions import Fraction

    from mpn.runtime.media.video import HIGHEST_RATE, LOWEST_RATE

    try:
        # The float first: as a fraction, 1e999999999 has a billion digits.
        is_number = "/" in text or LOWEST_RATE / 2 < float(text) < HIGHEST_RATE * 2
        rate = Fraction(text) if is_number else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(
            "--fps takes a rate above 0 like 25 or 30000/1001, "
            f"from {LOWEST_RATE} to {HIGHEST_RATE}, not '{text}'"
        )
    return rate


def default_finetune_cache() -> Path | None:
    """Return the default folder of fine-tuned weights.

    Returns None if the user has no home folder. The folder keeps its name of version 0.1, so that
    weights stored by that version are found.
    """
    from mpn._common.cache_dirs import user_cache_dir

    return user_cache_dir("adapt")


def check_formats_of(video: str, names: Sequence[str]) -> None:
    """Check before a run that its results can be converted to formats.

    Raises:
        InputError: If a format needs the frames, and ``video`` is a camera or an address.
    """
    needing = [name for name in names if FORMATS[name].needs_video]
    if not needing:
        return
    from mpn.runtime.media.video import is_address, redacted

    if is_address(video):
        raise InputError(
            f"cannot save {needing[0]} of {redacted(video)}: its frames cannot be read again; "
            "record the video to a file first"
        )

"""Read the videos of a batch from a manifest (CSV, JSONL), a folder or patterns."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from mpn._common.records import json_from_text
from mpn._common.storage import is_remote, joined_address, public_address
from mpn._common.text import read_text
from mpn._common.validation import repeated
from mpn.errors import InputError
from mpn.runtime.run_options import RunOptions, mask_names
from mpn.runtime.session.layout import DAVIS_EXTRAS, davis_sequence

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".ndjson")
NAME_FIELD = "{name}"
"""Text in the template of masks that stands for the name of the video."""

_COLUMNS = ("video", "mask", "out", "name")
_OF_THE_BATCH = frozenset(
    {"backend", "threads", "engine_dir", "build", "resume", "quiet", "json", "workers", "retry"}
)
"""Options of commands that a row cannot set."""
_MASK_SEPARATOR = ";"
_MOST_LINES = 10
"""Lines that one message names."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_MAGIC = re.compile(r"[*?\[]")
_VIDEO_SUFFIXES = (".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
                   ".ogv", ".ts", ".webm", ".webp", ".wmv")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One video of a batch.

    Attributes:
        name: Unique and stable; the key of shards.
        video: See :func:`mpn.runtime.media.video.open_video`, or an address of remote storage.
        masks: Frame index -> mask file or folder, or its address; None stands for the first frame.
        out: Output folder of its run, as ``mpn run -o``, or its address. Sequences of a data set in
            DAVIS layout may share one.
        options: Options of its run.
        origin: Line of the manifest for messages; empty if there is none.
    """

    name: str
    video: str
    masks: Mapping[int | None, str]
    out: str
    options: RunOptions = field(default_factory=RunOptions)
    origin: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether its video, a mask or its output is an address."""
        return any(map(is_remote, (self.video, *self.masks.values(), self.out)))

    @property
    def masks_folder(self) -> Path:
        """Folder of the masks."""
        sequence = _davis_sequence(self.video)
        return Path(self.out, "masks" if sequence is None else sequence)

    @property
    def place(self) -> str:
        """Path or address of the folder of run.json and done.json; no other unit has it."""
        sequence = _davis_sequence(self.video)
        inner = () if sequence is None else (DAVIS_EXTRAS, sequence)
        if is_remote(self.out):
            return joined_address(self.out, *inner)
        return str(Path(self.out, *inner))

    @property
    def folder(self) -> Path:
        """See :attr:`place`; for an output without address."""
        return Path(self.place)

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, for :meth:`from_json`."""
        return {
            "name": self.name,
            "video": self.video,
            "masks": [[index, path] for index, path in self.masks.items()],
            "out": self.out,
            "options": self.options.as_json(),
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Unit:
        """Convert the result of :meth:`as_json`."""
        masks = dict(value["masks"])
        options = RunOptions(**value["options"])
        return cls(**{**value, "masks": masks, "options": options})


def read_units(
    sources: Sequence[str],
    *,
    out_root: str | os.PathLike[str] | None = None,
    mask: str | None = None,
    options: RunOptions | None = None,
) -> list[Unit]:
    """Read all units of a batch.

    Args:
        sources: One manifest, or folders, patterns and files of videos.
        out_root: Folder, or its address, of the outputs that the manifest does not place:
            ``out_root/<name>``. None: ``<manifest>-mpn`` or ``batch-mpn`` in the current folder.
        mask: Template of the mask for videos without a manifest, with ``{name}`` in it.
        options: Options of videos that do not set them.

    Raises:
        InputError: If a source cannot be read, a row is wrong, or two units have one name or one
            output folder. The message names file and line.
    """
    base = options or RunOptions()
    check_sources(sources, mask)
    check_options(base)
    if _is_manifest(sources[0]):
        manifest = Path(sources[0])
        root = default_root(sources) if out_root is None else os.fspath(out_root)
        units = _units_of_manifest(manifest, root, base, has_root=out_root is not None)
    else:
        root = default_root(sources) if out_root is None else os.fspath(out_root)
        assert mask is not None
        units = _units_of_videos(sources, root, mask, base)
    _check_names(units)
    _check_folders(units)
    return units


def check_sources(sources: Sequence[str], mask: str | None) -> None:
    """Check that sources and the template of masks belong together.

    Raises:
        InputError: If not; nothing is read.
    """
    if not sources:
        raise InputError("no video was given: mpn batch MANIFEST.csv, or a pattern 'clips/*.mp4'")
    manifests = [text for text in sources if _is_manifest(text)]
    if manifests and len(sources) > 1:
        raise InputError(
            f"a batch has one manifest, or videos: {manifests[0]} was given with "
            f"{len(sources) - 1} other arguments"
        )
    if manifests and mask is not None:
        raise InputError("--mask is for videos without a manifest: the manifest has the masks")
    if not manifests and (mask is None or NAME_FIELD not in mask):
        raise InputError(
            "videos without a manifest (.csv, .jsonl) need --mask with {name} in it, which stands "
            "for the name of each video: --mask 'masks/{name}.png'"
            + (f", got '{mask}'" if mask else "")
        )


def default_root(sources: Sequence[str]) -> str:
    """Return the folder of the outputs if the user names none."""
    manifests = [Path(text).stem for text in sources if _is_manifest(text)]
    return f"{manifests[0] if manifests else 'batch'}-mpn"


def _is_manifest(text: str) -> bool:
    return text.lower().endswith(MANIFEST_SUFFIXES) and not os.path.isdir(text)


def _units_of_manifest(
    manifest: Path, root: str, base: RunOptions, *, has_root: bool
) -> list[Unit]:
    try:
        text = read_text(manifest)
    except OSError as error:
        raise InputError(f"cannot read the manifest {manifest}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"cannot read the manifest {manifest}: {error}") from error
    is_csv = manifest.suffix.lower() == ".csv"
    rows = _csv_rows(manifest, text) if is_csv else _json_rows(manifest, text)
    units, errors = [], []
    for line, row in rows:
        origin = f"{manifest}:{line}"
        try:
            unit = _unit_of_row(row, manifest.parent, root, base, has_root=has_root, is_text=is_csv)
        except InputError as error:
            errors.append((line, error))
        else:
            units.append(replace(unit, origin=origin))
    if errors:
        line, first = errors[0]
        others = ", ".join(str(line) for line, _ in errors[1:_MOST_LINES])
        more = "" if len(errors) <= _MOST_LINES else ", ..."
        count = "1 other line is" if len(errors) == 2 else f"{len(errors) - 1} other lines are"
        also = f"; {count} wrong ({others}{more})" if others else ""
        raise InputError(f"{manifest}:{line}: {first}{also}") from first
    if not units:
        raise InputError(f"the manifest {manifest} has no video")
    return units


def _csv_rows(manifest: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of the line and the non-empty cells of each row."""
    head = text.lstrip().partition("\n")[0]
    # Spreadsheets write semicolons in countries with a decimal comma.
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    before = 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [_option_name(cell) for cell in cells]
                _check_header(f"{manifest}:{line}", header)
                continue
            if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                raise InputError(
                    f"{manifest}:{line}: {len(cells)} cells, but the header has {len(header)}: "
                    f"put a cell with '{delimiter}' in quotes"
                )
            row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
            yield line, {name: cell for name, cell in row.items() if name and cell}
    except csv.Error as error:
        raise InputError(f"{manifest}:{reader.line_num}: no CSV ({error})") from error


def _check_header(origin: str, header: Sequence[str]) -> None:
    twice = repeated(name for name in header if name)
    if twice:
        raise InputError(f"{origin}: two columns have the name {_shown(twice[0])}")
    if "video" not in header or "mask" not in header:
        raise InputError(
            f"{origin}: the first line must name the columns, among them 'video' and 'mask', got "
            f"{_shown(','.join(header))}"
        )
    try:
        _check_columns(header)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def _json_rows(manifest: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json_from_text(content, InputError)
        except InputError as error:
            problem = str(error).replace(" at line 1 column", " at column")
            raise InputError(f"{manifest}:{line}: {problem}") from error
        if not isinstance(row, dict):
            raise InputError(f"{manifest}:{line}: a line must be a JSON object, got {_shown(row)}")
        named: dict[str, Any] = {}
        for name, value in row.items():
            if (known := _option_name(name)) in named:
                raise InputError(f"{manifest}:{line}: two fields have the name '{known}'")
            if value is not None:
                named[known] = value
        yield line, named


def _option_name(text: str) -> str:
    """Return the name of a column: ``--one-shot`` and ``one_shot`` are the same."""
    return text.strip().lower().removeprefix("--").replace("-", "_")


def _check_columns(names: Iterable[str]) -> None:
    for name in names:
        if name in _OF_THE_BATCH:
            raise InputError(
                f"'{name}' is an option of the whole batch: give it to the command, not to a row"
            )
        if name and name not in _COLUMNS and name not in RunOptions.names():
            known = ", ".join([*_COLUMNS, *RunOptions.names()])
            raise InputError(f"unknown column {_shown(name)}: the columns are {known}")


def _unit_of_row(
    row: Mapping[str, Any],
    folder: Path,
    root: str,
    base: RunOptions,
    *,
    has_root: bool,
    is_text: bool,
) -> Unit:
    _check_columns(row)
    texts = {name: _text_of(row, name) for name in ("video", "out", "name")}
    video = texts["video"]
    if video is None:
        raise InputError("'video' is missing")
    given = row.get("mask")
    if given is None:
        raise InputError(f"'mask' is missing, the mask of the first frame of {_shown(video)}")
    masks = mask_names(_mask_texts(given, folder), folder)
    is_camera = re.fullmatch(r"\d+", video) and not os.path.exists(folder / video)
    if is_camera:
        raise InputError(f"'video' is a camera, {video}: a batch runs files and folders of images")
    video = _resolved(video, folder)
    name = _checked_name(texts["name"] or _stem_of(video))
    out = texts["out"]
    if out is None:
        place = _default_out(video, root, name)
    else:
        place = _resolved(out, root if has_root else folder)
    own = {key: value for key, value in row.items() if key not in _COLUMNS}
    return Unit(
        name=name,
        video=video,
        masks={index: _resolved(path, folder) for index, path in masks.items()},
        out=place,
        options=_options_of(own, base, folder, is_text=is_text),
    )


def _text_of(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value:
        raise InputError(f"'{name}' must be a text, got {_shown(value)}")
    return value


def _mask_texts(given: Any, folder: Path) -> list[str]:
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) and text and "\0" not in text for text in texts):
        raise InputError(f"'mask' must be a text or a list of texts, got {_shown(given)}")
    if isinstance(given, list) or os.path.exists(folder / given):
        return texts
    return [part.strip() for part in given.split(_MASK_SEPARATOR) if part.strip()]


def _options_of(
    own: Mapping[str, Any], base: RunOptions, folder: Path, *, is_text: bool
) -> RunOptions:
    """Return the options of a row: its own, the others of the batch."""
    if not own:
        return base
    values = {name: _bool_text(value) if is_text else value for name, value in own.items()}
    if isinstance(values.get("fps"), int | float) and not isinstance(values["fps"], bool):
        values["fps"] = str(values["fps"])
    try:
        # Texts of a CSV file are converted; values of JSON must have the type of the option.
        options = msgspec.convert({**base.given(), **values}, RunOptions, strict=not is_text)
    except msgspec.ValidationError as error:
        match = re.search(r"at `\$\.(\w+)`", str(error))
        name = match[1] if match else ""
        raise InputError(
            f"'{name}' must be {_kind_of(name)}, got {_shown(values.get(name))}"
        ) from error
    if options.finetune_cache is not None and "finetune_cache" in own:
        options = replace(options, finetune_cache=str(folder / options.finetune_cache))
    check_options(options)
    return options


def _kind_of(option: str) -> str:
    """Return what values an option takes, for messages."""
    kinds = {int: "a whole number", bool: "true or false", float: "a number", str: "a text"}
    hint = get_type_hints(RunOptions).get(option)
    for kind in get_args(hint) or (hint,):
        if get_origin(kind) is Literal:
            return f"one of {', '.join(get_args(kind))}"
        if kind in kinds:
            return kinds[kind]
    choices = [kind for kind in get_args(hint) if isinstance(kind, str)]
    return f"one of {', '.join(choices)}" if choices else "another value"


def check_options(options: RunOptions) -> None:
    """Check the values of options without a video.

    Raises:
        InputError: If one is out of range.
    """
    from mpn.runtime.media.video import check_frame_range

    check_frame_range(options.start, options.end)
    options.request(
        video="", masks={}, out=None, engine_dir=None, backend="auto", threads=None, resume=False
    )


def _bool_text(text: Any) -> Any:
    lower = text.lower() if isinstance(text, str) else text
    return {"yes": "true", "no": "false", "true": "true", "false": "false"}.get(lower, text)


def _units_of_videos(sources: Sequence[str], root: str, mask: str, base: RunOptions) -> list[Unit]:
    units = []
    for name, video in _named_videos(sources):
        masks = mask_names([mask.replace(NAME_FIELD, name)], Path())
        units.append(
            Unit(
                name=_checked_name(name),
                video=video,
                masks={index: os.path.expanduser(path) for index, path in masks.items()},
                out=_default_out(video, root, name),
                options=base,
            )
        )
    return units


def _named_videos(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and path of each video.

    A name is the path from the part of the pattern without wildcards, without the suffix of a
    file: it does not depend on the other videos.
    """
    for text in sources:
        source = os.path.expanduser(text)
        if os.path.isfile(source) or _is_one_video(Path(source)):
            yield _stem_of(source), source
        else:
            found = _videos_in(source)
            if not found and is_remote(text):
                raise InputError(
                    f"'{public_address(text)}' is a pattern of addresses, which is not expanded: "
                    "list the videos in a manifest"
                )
            root = source if os.path.isdir(source) else _fixed_part(source)
            if not found and os.path.isdir(source):
                raise InputError(f"the folder '{text}' has no video and no folder of images")
            if not found:
                absent = root and not os.path.isdir(root)
                reason = f": there is no folder '{root}'" if absent else ""
                raise InputError(f"no video matches '{text}'{reason}")
            for path in found:
                relative = Path(os.path.relpath(path, root or "."))
                name = relative if os.path.isdir(path) else relative.with_suffix("")
                yield name.as_posix(), path


def _videos_in(source: str) -> list[str]:
    if os.path.isdir(source):
        entries = [entry for entry in sorted(Path(source).iterdir()) if not _is_hidden(entry)]
        return [
            str(entry)
            for entry in entries
            if entry.suffix.lower() in _VIDEO_SUFFIXES or _is_one_video(entry)
        ]
    if not _MAGIC.search(source):
        return [source]  # its run has the reason
    return sorted(path for path in glob.glob(source, recursive=True) if not _is_hidden(Path(path)))


def _is_one_video(folder: Path) -> bool:
    """Return whether a path is a folder of images."""
    if not os.path.isdir(folder):
        return False
    from mpn.errors import VideoError
    from mpn.runtime.media.video_images import images_from_folder

    try:
        return bool(images_from_folder(folder))
    except VideoError:
        return False


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _fixed_part(pattern: str) -> str:
    """Return the folder of a pattern before its first wildcard."""
    match = _MAGIC.search(pattern)
    return os.path.dirname(pattern[: match.start()] if match else pattern)


def _stem_of(video: str) -> str:
    """Return the name of a video by itself, as ``<name>-mpn`` of ``mpn run`` has it."""
    path = Path(public_address(video).rstrip("/"))
    if "%" in path.name and not os.path.exists(path):
        path = path.parent
    return path.name if os.path.isdir(path) else path.stem


def _default_out(video: str, root: str, name: str) -> str:
    """Return the output folder; sequences in DAVIS layout share one, for mpn eval."""
    if _davis_sequence(video) is not None:
        return root
    return joined_address(root, name) if is_remote(root) else str(Path(root, name))


def _davis_sequence(video: str) -> str | None:
    return None if is_remote(video) else davis_sequence(video)


def _resolved(text: str, folder: str | Path) -> str:
    if is_remote(text):
        return text
    if is_remote(folder):
        return joined_address(str(folder), text)
    return str(folder / Path(os.path.expanduser(text)))


def _checked_name(name: str) -> str:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or _CONTROL.search(name):
        raise InputError(
            f"the name {_shown(name)} must be a relative path of visible characters, without '..'"
        )
    return name


def _check_names(units: Sequence[Unit]) -> None:
    first: dict[str, Unit] = {}
    for unit in units:
        other = first.setdefault(unit.name, unit)
        if other is not unit:
            raise InputError(
                f"{_where(unit)}two videos have the name '{unit.name}', {_at(other)} and "
                f"{_at(unit)}: give them names in a manifest, in a column 'name'"
            )


def _check_folders(units: Sequence[Unit]) -> None:
    """Refuse two units with one output folder, and one folder in another."""
    resolved = {
        unit.name: unit.place if is_remote(unit.out) else os.path.realpath(unit.folder)
        for unit in units
    }
    owner: dict[str, Unit] = {}
    for unit in units:
        other = owner.setdefault(resolved[unit.name], unit)
        if other is not unit:
            raise InputError(
                f"{_where(unit)}two videos have the output folder {_folder(unit)}, "
                f"{_at(other)} and {_at(unit)}: give each its own"
            )
    for unit in units:
        above = os.path.dirname(resolved[unit.name])
        while above not in ("", os.path.dirname(above)):
            if above in owner:
                raise InputError(
                    f"{_where(unit)}the output folder {_folder(unit)} is inside that of "
                    f"{_at(owner[above])}: give each its own"
                )
            above = os.path.dirname(above)


def _where(unit: Unit) -> str:
    return f"{unit.origin}: " if unit.origin else ""


def _folder(unit: Unit) -> str:
    return public_address(unit.place)


def _at(unit: Unit) -> str:
    video = public_address(unit.video)
    return f"{video} (line {unit.origin.rpartition(':')[2]})" if unit.origin else video


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= 80 else text[:77] + "..."

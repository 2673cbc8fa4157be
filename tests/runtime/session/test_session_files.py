"""Files of a run: signals, locks, power failures, names and links."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from mpn.errors import OutputError
from mpn.masks import load_labels, png_from_labels
from mpn.runtime.media.overlay import OverlayWriter
from mpn.runtime.session.request import Progress, RunRequest
from mpn.runtime.session.session import run_video
from tests.runtime.media.clips import scene, write_folder
from tests.runtime.session.test_session import (
    FRAMES,
    files_in,
    mask_names,
    overlay_times,
    run_json,
    track_lines,
)
from tests.runtime.session.test_session import clip as clip
from tests.runtime.session.test_session import engine_dir as engine_dir
from tests.runtime.session.test_session import request_ as request_

# --- masks that were edited ------------------------------------------------------------------


def test_new_run_over_edited_masks_is_refused(request_: RunRequest) -> None:
    run_video(request_)
    out = request_.out or Path()
    edited = [out / "masks" / f"{index:05d}.png" for index in (3, 5)]
    untouched = files_in(out)
    for path in edited:
        labels = load_labels(path, allow_empty=True)
        labels[:9, :9] = 1
        path.write_bytes(png_from_labels(labels))
    content = [path.read_bytes() for path in edited]
    with pytest.raises(OutputError, match=r"00003\.png was edited .* --mask 3:"):
        run_video(request_)
    given = replace(request_, masks={**request_.masks, 3: edited[0]})
    with pytest.raises(OutputError, match=r"00005\.png was edited"):
        run_video(given)
    assert [path.read_bytes() for path in edited] == content
    assert files_in(out) == untouched
    edited[1].write_bytes(content[1][: len(content[1]) // 2])  # damaged: nothing that a user made
    run_video(given)
    kept = load_labels(edited[0])
    assert kept[:9, :9].all()


# --- signals ---------------------------------------------------------------------------------


def test_signals_while_files_are_finished_lose_nothing(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send SIGTERM, then two more signals while the overlay is closed."""
    real = OverlayWriter.close

    def close(self: OverlayWriter) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(OverlayWriter, "close", close)

    def on_progress(progress: Progress) -> None:
        if progress.done == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run_video(request_, on_progress=on_progress)
    out = request_.out or Path()
    assert run_json(out)["state"] == "interrupted"
    assert files_in(out) == mask_names(5) | {"overlay.mp4", "tracks.jsonl", "run.json"}
    assert len(overlay_times(out)) == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signal_at_the_end_of_a_run_completes_it(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OverlayWriter.close

    def close(self: OverlayWriter) -> None:
        signal.raise_signal(signal.SIGINT)
        real(self)

    monkeypatch.setattr(OverlayWriter, "close", close)
    with pytest.raises(KeyboardInterrupt):
        run_video(request_)
    assert run_json(request_.out or Path())["state"] == "complete"
    assert len(overlay_times(request_.out or Path())) == FRAMES


# --- results a run can do without --------------------------------------------------------------


@pytest.mark.parametrize("method", ["__init__", "write", "close"])
def test_overlay_that_cannot_be_written_is_a_warning(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(self: OverlayWriter, *args: object, **options: object) -> None:
        raise OutputError("cannot encode overlay.mp4: too wide")

    monkeypatch.setattr(OverlayWriter, method, fail)
    report = run_video(request_)
    assert files_in(request_.out or Path()) == mask_names(FRAMES) | {"tracks.jsonl", "run.json"}
    assert report["state"] == "complete"
    assert report["saved"] == ["masks"]
    (warning,) = report["warnings"]
    assert warning.startswith("the overlay is left out, ")
    assert warning.endswith("too wide")
    with pytest.raises(OutputError, match="too wide"):  # control: all that was requested
        run_video(replace(request_, save=frozenset({"overlay"})))


# --- two runs in one folder --------------------------------------------------------------------


def test_second_run_in_a_folder_is_refused_at_once(request_: RunRequest) -> None:
    out = request_.out or Path()
    seen: list[str] = []

    def start_another(progress: Progress) -> None:
        if progress.done == 3:
            with pytest.raises(
                OutputError, match=f"in use by another run .process {os.getpid()}."
            ) as e:
                run_video(replace(request_, resume=True))
            seen.append(str(e.value))

    run_video(request_, on_progress=start_another)
    assert len(seen) == 1
    assert files_in(out) == mask_names(FRAMES) | {"overlay.mp4", "tracks.jsonl", "run.json"}
    run_video(request_)  # control: the lock is gone


# --- a power failure ---------------------------------------------------------------------------


def test_all_results_are_flushed_before_the_report(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record each flush and rename; the report must be the last file to get its name."""
    events: list[tuple[str, str]] = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))
        flush(descriptor)

    def replace_(source: Path, target: Path) -> None:
        rename(source, target)
        events.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace_)
    run_video(request_)
    out = request_.out or Path()
    done = events.index(("rename", str(out / "run.json")))
    before, after = events[:done], events[done:]
    for index in range(FRAMES):
        mask = str(out / f"masks/{index:05d}.png")
        assert before.index(("rename", mask)) < before.index(("flush", mask))
    masks = ("flush", str(out / "masks"))
    assert before.index(masks) > before.index(("flush", str(out / f"masks/{FRAMES - 1:05d}.png")))
    assert before.index(masks) < before.index(("rename", str(out / "tracks.jsonl")))
    assert before.count(("flush", str(out))) >= 2  # the overlay and the tracks
    assert ("flush", str(out)) in after


# --- names and links ---------------------------------------------------------------------------


def test_names_that_are_not_utf8_are_kept(request_: RunRequest, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        folder = write_folder(tmp_path / name, scene(3), name + "{:05d}.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    out = tmp_path / f"{name}-out"
    request = replace(request_, video=str(folder), out=out)
    run_video(request)
    assert files_in(out) >= {f"masks/{name}{index:05d}.png" for index in range(3)}
    assert b"caf\\udce9" in (out / "run.json").read_bytes()
    assert run_json(out)["video"]["source"] == str(folder)
    assert next(line["name"] for line in track_lines(out)) == f"{name}00000"
    before = (out / "run.json").stat().st_mtime_ns
    run_video(replace(request, resume=True))
    assert (out / "run.json").stat().st_mtime_ns == before  # found complete


def test_long_frame_names_are_written(request_: RunRequest, tmp_path: Path) -> None:
    name = "n" * 246
    folder = write_folder(tmp_path / "long", scene(2), "{:d}" + name + ".png")
    run_video(replace(request_, video=str(folder)))
    assert f"masks/1{name}.png" in files_in(request_.out or Path())


@pytest.mark.parametrize("name", ["tracks.jsonl.partial", "run.json.partial", "run.partial.json",
                                  "rle.jsonl.partial", "masks/00001.png", "run.json"])  # fmt: skip
def test_links_in_the_folder_are_never_followed(
    request_: RunRequest, tmp_path: Path, name: str
) -> None:
    elsewhere, out = tmp_path / "elsewhere", request_.out or Path()
    elsewhere.write_text("")
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(elsewhere)
    save = frozenset({"masks", "rle"})
    if name == "masks/00001.png":
        with pytest.raises(OutputError, match="that no earlier run wrote"):
            run_video(replace(request_, save=save))
        return
    run_video(replace(request_, save=save))
    assert elsewhere.read_text() == ""


@pytest.mark.parametrize(("threshold", "is_lost"), [(1.0, True), (0.5, False)])
def test_object_that_is_lost_at_once_is_a_warning(
    request_: RunRequest, threshold: float, is_lost: bool
) -> None:
    options = replace(request_.options, threshold=threshold)
    report = run_video(replace(request_, options=options))
    expected = [f"object {k} was found in no frame but those with its masks" for k in (1, 2)]
    assert report["warnings"] == (expected if is_lost else [])

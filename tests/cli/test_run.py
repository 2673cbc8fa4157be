from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from mpn.cli import main as cli
from mpn.cli.run import BackendName, DecodeName, DirectionName, ScopeName
from mpn.engines.open import BACKENDS
from mpn.errors import OutputError
from mpn.formats.annotated import AnnotatedFrame, VideoInfo
from mpn.formats.coco import write_coco
from mpn.masks import load_labels, save_labels
from mpn.runtime.media.overlay import OverlayWriter
from mpn.runtime.media.video import DECODERS
from mpn.runtime.media.video_file import VideoStream
from mpn.runtime.options import DEFAULT_RECIPES, FinetuneRecipe, FinetuneScope
from mpn.runtime.session import session
from mpn.runtime.session.schedule import DIRECTIONS
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.learning_dirs import make_adaptable_engine_dir
from tests.builders.tiny_disk import tiny_disk as tiny_disk
from tests.runtime.media.clips import (
    SCENE_HW,
    level_frame,
    scene,
    scene_labels,
    write_folder,
    write_video,
)

FRAMES = 5
HANG_S = 60.0
"""Far above what a subprocess here needs, also on a busy machine."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of possible inputs of a run: clip.mp4, first.png, engines/, bad ones."""
    folder = tmp_path_factory.mktemp("inputs")
    make_engine_dir(folder / "engines", frame_size_hw=SCENE_HW)
    make_adaptable_engine_dir(folder / "learning", frame_size_hw=SCENE_HW)
    frames = scene(FRAMES)
    write_video(folder / "clip.mp4", frames)
    labels = scene_labels(0)
    save_labels(folder / "first.png", labels)
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(folder / "binary.png")

    (folder / "text.mp4").write_text("not a video\n" * 100)
    save_labels(folder / "small.png", labels[:40, :50])
    Image.fromarray(np.repeat(labels[:, :, None] * 100, 3, axis=2)).save(folder / "rgb.png")
    save_labels(folder / "empty.png", np.zeros(SCENE_HW, np.uint8))
    many = np.arange(SCENE_HW[0] * SCENE_HW[1]) % 201
    Image.fromarray(many.reshape(SCENE_HW).astype(np.uint8)).save(folder / "many.png")
    write_folder(folder / "one_pixel", [level_frame(0, (1, 1))] * 2)
    save_labels(folder / "one_pixel.png", np.ones((1, 1), np.uint8))
    write_folder(folder / "mixed", [frames[0], frames[1][:50]])
    (folder / "no_images").mkdir()

    flipped = make_engine_dir(folder / "flipped", frame_size_hw=SCENE_HW) / "propagation.onnx"
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(bytes(data))
    outside = make_engine_dir(folder / "outside", frame_size_hw=SCENE_HW) / "manifest.json"
    manifest = outside.read_text().replace('"propagation.onnx"', '"../propagation.onnx"')
    outside.write_text(manifest)
    return folder


@pytest.fixture
def run(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Run ``mpn-run`` in an empty folder; ``@name`` is a path among the inputs."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

    def run_(*arguments: str, add_engines: bool = True) -> int:
        given = [re.sub(r"@", f"{inputs}/", argument) for argument in arguments]
        if add_engines and "--engine-dir" not in given:
            given += ["--engine-dir", str(inputs / "engines")]
        return cli._run_app(cli._single_command(cli.run, "mpn-run"), given)

    return run_


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_names_of_objects_are_printed(run, inputs: Path, tmp_path: Path, capsys) -> None:
    frame = AnnotatedFrame(0, "00000", load_labels(inputs / "first.png"))
    info = VideoInfo("clip", frame.labels.shape, (1, 2), {2: "koi"})
    write_coco(tmp_path / "first.json", [frame], info)
    assert run("@clip.mp4", "--mask", str(tmp_path / "first.json"), "--no-review") == 0
    assert re.search(r"objects 1, 2 'koi': masks in clip-mpn/masks", capsys.readouterr().out)


def test_run_writes_to_working_dir_and_prints_path(run, capsys) -> None:
    assert run("@clip.mp4", "--mask", "@first.png", "--backend", "cpu") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert re.search(r"^5 frames, [\d.]+ FPS on cpu, objects 1, 2: masks in clip-mpn/masks", out)
    assert err == ""  # no terminal, and over in less than a progress line's time
    assert len(list(Path("clip-mpn/masks").glob("*.png"))) == FRAMES


def test_each_option_arrives(run, capsys) -> None:
    code = run(
        "@clip.mp4", "--mask", "@binary.png", "--mask", "3:@first.png", "-o", "res", "--json",
        "--backend", "cpu", "--threads", "1", "--crf", "--no-osvos",
        "--no-finetune", "--size", "32", "--start", "1", "--end", "4", "--save", "rle, probs,masks",
        "--direction", "forward",
    )  # fmt: skip
    out, _ = capsys.readouterr()
    assert code == 0
    report = json.loads(out)
    assert report == json.loads(Path("res/run.json").read_text())
    assert report["options"]["size"] == 32
    assert report["options"]["osvos"]["mode"] == "off"
    assert report["options"]["crf"]["iterations"] == 5
    assert report["stages"]["crf"]["frames"] == 2
    assert report["finetune"] == {"ran": False, "reason": "not requested"}
    assert report["backend"]["threads"] == 1
    assert [(m["frame"], m["direction"]) for m in report["masks"]] == [
        (1, "forward"), (3, "forward"),
    ]  # fmt: skip
    assert report["saved"] == ["masks", "probs", "rle"]
    assert report["object_ids"] == [1, 2]
    assert sorted(path.name for path in Path("res/masks").iterdir()) == [
        "00001.png", "00002.png", "00003.png",
    ]  # fmt: skip


def test_defaults_leave_the_engines_advice_in_force(run, capsys, tmp_path: Path) -> None:
    engines = make_engine_dir(
        tmp_path / "advising", frame_size_hw=SCENE_HW, runtime_defaults={"size": 40}
    )
    assert run("@clip.mp4", "--mask", "@first.png", "--engine-dir", str(engines), "--json") == 0
    assert json.loads(capsys.readouterr().out)["options"]["size"] == 40


def test_missing_finetune_graph_falls_back_and_is_reported(run, capsys) -> None:
    assert run("@clip.mp4", "--mask", "@first.png", "--seed", "3", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["finetune"]["ran"] is False
    assert "no graphs to fine-tune with" in report["finetune"]["reason"]
    assert report["fps_after_finetune"] == report["fps"]
    assert report["fingerprint"]["finetune"] is None
    assert report["options"]["crf"] is None


QUICK = ("--finetune-steps", "3", "--finetune-size", "65")


def test_each_finetune_option_arrives(run, capsys) -> None:
    code = run(
        "@clip.mp4", "--mask", "@first.png", "--engine-dir", "@learning", "--json", *QUICK,
        "--finetune-seconds", "60", "--finetune-scope", "all", "--finetune-cache", "kept",
        "--seed", "9",
    )  # fmt: skip
    assert code == 0
    told = json.loads(capsys.readouterr().out)["finetune"]
    assert told["ran"] is True
    asked = {"steps": 3, "size": 65, "seconds": 60.0, "scope": "all", "seed": 9}
    assert asked.items() <= told["options"].items()
    assert [o["steps"] for o in told["objects"]] == [3, 3]
    assert len(list(Path("kept").iterdir())) == 2


def test_run_finetunes_by_default_and_caches_weights(
    run, capsys, monkeypatch, tmp_path: Path
) -> None:
    recipe = FinetuneRecipe(steps=2, size_px=65, batch=1, learning_rate=1e-3)
    monkeypatch.setitem(DEFAULT_RECIPES, "propagation", recipe)  # type: ignore[arg-type]
    arguments = ("@clip.mp4", "--mask", "@first.png", "--engine-dir", "@learning")
    assert run(*arguments) == 0
    summary = capsys.readouterr().out
    assert re.search(r"[\d.]+ FPS on cpu \([\d.]+ after \d+ s of fine-tuning\)", summary)
    assert len(list((tmp_path / "caches/mpn-runtime/adapt").iterdir())) == 2
    for more, cached in (((), [True, True]), (("--no-finetune-cache",), [False, False])):
        assert run(*arguments, *more, "--json") == 0
        told = json.loads(capsys.readouterr().out)["finetune"]
        assert [o["cached"] for o in told["objects"]] == cached
    assert run(*arguments, "--no-finetune", "--json") == 0
    assert json.loads(capsys.readouterr().out)["finetune"] == {
        "ran": False,
        "reason": "not requested",
    }


@pytest.mark.parametrize(("more", "crf"), [((), False), (("--crf",), True)])
def test_fast_overrules_advice_but_not_given_options(
    run, capsys, tmp_path: Path, more: tuple[str, ...], crf: bool
) -> None:
    engines = make_engine_dir(
        tmp_path / "advising",
        frame_size_hw=SCENE_HW,
        runtime_defaults={"flip_tta": True, "crf": True, "size": 40},
    )
    arguments = ("@clip.mp4", "--mask", "@first.png", "--engine-dir", str(engines), "--json")
    told = {}
    for fast in ((), ("--fast",)):
        assert run(*arguments, *fast, *more) == 0
        report = json.loads(capsys.readouterr().out)
        told[fast] = report["options"]
        assert report["options"]["size"] == 40
    assert (told[()]["flip_tta"], told[()]["crf"] is not None) == (True, True)
    fast = told["--fast",]
    assert (fast["flip_tta"], fast["crf"] is not None) == (False, crf)
    assert report["finetune"] == {"ran": False, "reason": "not requested"}


def test_finetune_progress_with_eta_is_on_stderr_only(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("mpn.cli.progress._PLAIN_PROGRESS_EVERY_S", 0.0)
    arguments = ("@clip.mp4", "--mask", "@first.png", "--engine-dir", "@learning", *QUICK)
    assert run(*arguments, "--json") == 0
    out, err = capsys.readouterr()
    json.loads(out)
    lines = err.splitlines()
    assert re.fullmatch(
        r"fine-tuning object 1 \(propagation\): step 1 of 3, ETA \d+ s, loss [\d.]+", lines[0]
    )
    assert lines[5].startswith("fine-tuning object 2 (propagation): step 3 of 3, ETA 0 s")
    assert re.fullmatch(r"frame 5 of 5, ETA 0 s, [\d.]+ FPS", lines[-1])
    assert run(*arguments, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_bars_are_shown_on_a_terminal(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run("@clip.mp4", "--mask", "@first.png", "--engine-dir", "@learning", *QUICK) == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1


def test_quiet_prints_nothing(run, capsys) -> None:
    assert run("@clip.mp4", "--mask", "@first.png", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_folder_of_images_takes_a_frame_rate(run, capsys, inputs: Path) -> None:
    write_folder(Path("frames"), scene(3))
    assert run("frames", "--mask", "@first.png", "--fps", "30000/1001", "--json") == 0
    assert json.loads(capsys.readouterr().out)["video"]["fps"] == "30000/1001"


def test_interrupted_run_is_resumed(run, capsys, monkeypatch) -> None:

    original = session._Run._write

    def interrupt(self, outputs, frame, *rest) -> None:  # type: ignore[no-untyped-def]
        if frame.index == 3:
            raise KeyboardInterrupt
        original(self, outputs, frame, *rest)

    monkeypatch.setattr(session._Run, "_write", interrupt)
    assert run("@clip.mp4", "--mask", "@first.png") == 130
    assert capsys.readouterr().err == (
        "interrupted: 3 frames are done and kept, continue with --resume\n"
    )
    monkeypatch.setattr(session._Run, "_write", original)
    assert run("@clip.mp4", "--mask", "@first.png", "--resume", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["resumed_at"], report["frames"], report["frames_computed"]) == (2, 5, 2)
    Path("clip-mpn").rename("moved")
    assert run("@clip.mp4", "--mask", "@first.png", "-o", "moved", "--resume") == 0
    summary = capsys.readouterr().out
    assert summary.startswith("5 frames, nothing left to do, objects 1, 2: masks in moved")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_stop_signals_end_with_their_code(run, capsys, monkeypatch, name: str, code: int) -> None:
    original = session._Run._write

    def stop(self, outputs, frame, *rest) -> None:  # type: ignore[no-untyped-def]
        if frame.index == 3:
            signal.raise_signal(getattr(signal, name))
        original(self, outputs, frame, *rest)

    monkeypatch.setattr(session._Run, "_write", stop)
    assert run("@clip.mp4", "--mask", "@first.png") == code
    assert capsys.readouterr().err.startswith("interrupted: 3 frames are done and kept")
    assert json.loads(Path("clip-mpn/run.json").read_text())["state"] == "interrupted"


def test_warnings_of_a_run_are_printed(run, capsys, monkeypatch) -> None:
    def fail(self, *args, **options) -> None:  # type: ignore[no-untyped-def]
        raise OutputError("cannot encode")

    monkeypatch.setattr(OverlayWriter, "write", fail)
    assert run("@clip.mp4", "--mask", "@first.png") == 0
    out, err = capsys.readouterr()
    assert "warning: the overlay is left out, " in err
    assert out.startswith("5 frames, ")
    assert run("@clip.mp4", "--mask", "@first.png", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


# --- bad input: exit code 1, one line, nothing left behind --------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["absent.mp4", "--mask", "@first.png"], "no such video: 'absent.mp4'",
                     id="no such file"),
        pytest.param(["@text.mp4", "--mask", "@first.png"], "text.mp4 is not a video",
                     id="text renamed mp4"),
        pytest.param(["@clip.mp4", "--mask", "@small.png"], "is 50x40 but the video is 96x64",
                     id="mask of another size"),
        pytest.param(["@clip.mp4", "--mask", "@rgb.png"], "an RGB image", id="RGB mask"),
        pytest.param(["@clip.mp4", "--mask", "@empty.png"], "is empty", id="empty mask"),
        pytest.param(["@clip.mp4", "--mask", "@many.png"], "200 different ids", id="200 ids"),
        pytest.param(["@clip.mp4", "--mask", "@text.mp4"], "cannot be read", id="mask is no image"),
        pytest.param(["@one_pixel", "--mask", "@one_pixel.png"], "is 1x1 (width x height)",
                     id="1x1 video"),
        pytest.param(["@mixed", "--mask", "@first.png"],
                     "00001.png is 96x50 but 00000.png is 96x64", id="mixed sizes"),
        pytest.param(["@no_images", "--mask", "@first.png"], "holds no images", id="empty folder"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--engine-dir", "@flipped"],
                     "has changed since export", id="flipped byte"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--engine-dir", "@outside"],
                     "contains '..'", id="manifest path outside"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--engine-dir", "@clip.mp4"],
                     "clip.mp4 is a video, not an engine directory", id="engines are a video"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--backend", "tensorrt"],
                     "extra [tensorrt]", id="backend not here"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "-o", "@first.png"],
                     "first.png is a file, not a folder", id="out is a file"),
        pytest.param([f"{'x' * 300}.mp4", "--mask", "@first.png"],
                     "File name too long", id="long name of the video"),
        pytest.param(["@clip.mp4", "--mask", f"{'x' * 300}.png"],
                     "File name too long", id="long name of the mask"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "-o", "x" * 300],
                     "File name too long", id="long name of out"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "-o", "/proc/mpn-out"],
                     "cannot write", id="no permission"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--start", "77"],
                     "cannot start at frame 77", id="start behind the end"),
        pytest.param(["@clip.mp4", "--mask", "3:@first.png", "--start", "4"], "--start 3",
                     id="mask before the start"),
        pytest.param(["@clip.mp4", "--mask", "99:@first.png"], "the last frame is",
                     id="mask after the end"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--fps", "25"],
                     "only be given for images", id="fps of a file"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--end", "4", "--mask", "9:@first.png"],
                     "given for frame 9, but the last frame is 3", id="mask after the end"),
        pytest.param(["@clip.mp4", "--mask", "@first.png", "--finetune-steps", "3"],
                     "the engines 'tiny' have no graphs to fine-tune with", id="cannot adapt"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    run, capsys, arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert left_in(Path.cwd()) == []


def test_cut_video_is_one_line_and_keeps_its_masks(run, capsys) -> None:
    whole = write_video(Path("whole.mp4"), scene(8), container_options={"movflags": "+faststart"})
    Path("cut.mp4").write_bytes(whole.read_bytes()[:-100])
    assert run("cut.mp4", "--mask", "@first.png") == 1
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "cut short" in err
    assert "frames done are in cut-mpn" in err
    assert len(list(Path("cut-mpn/masks").iterdir())) >= 2
    assert Path("cut-mpn/overlay.mp4").stat().st_size > 0
    assert not list(Path("cut-mpn").rglob("*partial*"))


def test_full_disk_is_one_line(run, capsys, tiny_disk: Path) -> None:
    write_video(Path("long.mp4"), scene(80))
    assert run("long.mp4", "--mask", "@first.png", "-o", str(tiny_disk / "out")) == 1
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "No space left on device" in err
    for mask in (tiny_disk / "out" / "masks").iterdir():
        with Image.open(mask) as image:
            assert image.size == (SCENE_HW[1], SCENE_HW[0])
            image.load()


# --- wrong usage: exit code 2 -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "@first.png"], "VIDEO is missing"),
        (["--mask", "@first.png", "--engine-dir", "clip.mp4"],
         "clip.mp4 is no engine directory; did you mean mpn-run clip.mp4 --mask FIRST.png"),
        (["@clip.mp4"], "no mask was given"),
        (["@clip.mp4", "--mask", "a.png", "--mask", "b.png"], "two masks for the first frame"),
        (["@clip.mp4", "--mask", "3:a.png", "--mask", "3:b.png"], "two masks for frame 3"),
        (["@clip.mp4", "--mask", "a.png", "--save", "masks,gif"], "not 'gif'"),
        (["@clip.mp4", "--mask", "a.png", "--save", ","], "--save takes at least one of masks"),
        (["@clip.mp4", "--mask", "a.png", "--save="], "--save takes at least one of masks"),
        (["@clip.mp4", "--mask", "a.png", "--fps", "fast"], "not 'fast'"),
        (["@clip.mp4", "--mask", "a.png", "--fps", "0"], "rate above 0 like 25 or 30000/1001"),
        (["@clip.mp4", "--mask", "a.png", "--fps", "1e30"], "1/100000 to 100000, not '1e30'"),
        (["@clip.mp4", "--mask", "a.png", "--fps", "1e999999999"], "not '1e999999999'"),
        (["@clip.mp4", "--mask", "a.png", "--bogus"],
         "error: no such option: --bogus; --help lists"),
        (["@clip.mp4", "--mask", "a.png", "--backend", "vulkan"],
         "--backend must be one of 'auto', 'cpu', 'openvino', 'cuda', 'tensorrt', "
         "'tensorrt-rtx', got 'vulkan'"),
        (["@clip.mp4", "--mask", "a.png", "--start", "-1"],
         "--start must be at least 0, got '-1'"),
        (["@clip.mp4", "--mask", "a.png", "--end=0"], "--end must be at least 1, got '0'"),
        (["@clip.mp4", "--mask", "a.png", "--size", "abc"],
         "--size must be a whole number, got 'abc'"),
        (["@clip.mp4", "--mask", "a.png", "--size", "0"],
         "--size must be a short side of at least 16 pixels, or -1 for the size of the video"),
        (["@clip.mp4", "--mask", "a.png", "--size", "15"], "got 15"),
        (["@clip.mp4", "--mask", "a.png", "--seed", "-1"], "--seed must be a number of 0.."),
        (["@clip.mp4", "--mask", "a.png", "--threads", "0"],
         "--threads must be a number of threads of at least 1, got 0"),
        (["@clip.mp4", "--mask", "a.png", "--finetune-size", "100"],
         "--finetune-size must be 16 n + 1 and at least 65"),
        (["@clip.mp4", "--mask", "a.png", "--finetune-seconds", "0"],
         "--finetune-seconds must be seconds above 0"),
        (["@clip.mp4", "--mask", "a.png", "--osvos-every", "0"],
         "--osvos-every must be a number of frames of at least 1, got 0"),
        (["@clip.mp4", "--mask", "a.png", "--no-finetune", "--finetune-steps", "3"],
         "--no-finetune contradicts"),
        (["@clip.mp4", "--mask", "a.png", "--fast", "--finetune"], "--fast contradicts"),
        (["@clip.mp4", "--mask", "a.png", "--one-shot", "both", "--no-osvos"],
         "--no-osvos contradicts --one-shot both"),
        (["@clip.mp4", "--mask", "a.png", "--one-shot", "target", "--osvos-every", "3"],
         "--one-shot target contradicts --osvos-every"),
        (["@clip.mp4", "--mask", "a.png", "--no-osvos", "--osvos-every", "3"],
         "--no-osvos contradicts --osvos-every"),
        (["@clip.mp4", "--mask", "a.png", "--fast", "--finetune-seconds", "3"],
         "--fast contradicts"),
        (["@clip.mp4", "--mask", "a.png", "--finetune-cache", "c", "--no-finetune-cache"],
         "--finetune-cache contradicts"),
        (["@clip.mp4", "--mask", "a.png", "--finetune-scope", "tail"], "tail"),
        (["@clip.mp4", "--mask", "a.png", "--finetune-steps", "0"], "--finetune-steps"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_with_code_2(
    run, capsys, arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert left_in(Path.cwd()) == []


def test_names_in_the_command_line_are_those_of_the_runtime() -> None:
    assert tuple(name.value for name in BackendName) == BACKENDS
    assert tuple(name.value for name in ScopeName) == get_args(FinetuneScope)
    assert tuple(name.value for name in DecodeName) == DECODERS
    assert tuple(name.value for name in DirectionName) == DIRECTIONS


def test_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, mpn.cli.run; "
        "heavy = {'numpy', 'cv2', 'av', 'PIL', 'onnxruntime', 'torch', 'scipy'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- the installed command ----------------------------------------------------------------------


def installed(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from mpn.cli.main import main_run; main_run()", *arguments]


def test_installed_command_ends_with_code_1_and_one_line(inputs: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        installed("absent.mp4", "--mask", str(inputs / "first.png")),
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no such video")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="SIGINT to a subprocess is a POSIX matter")
def test_ctrl_c_finishes_the_files_and_ends_with_130(inputs: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "long.mp4", [level_frame(i, SCENE_HW) for i in range(3000)])
    out = tmp_path / "out"
    process = subprocess.Popen(
        installed(str(clip), "--mask", str(inputs / "first.png"), "-o", str(out),
                  "--engine-dir", str(inputs / "engines"), "--threads", "1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + HANG_S
        while not (out / "masks" / "00003.png").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no mask appeared"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert re.fullmatch(r"(frame .*\n)*interrupted: \d+ frames are done and kept, .*\n", err)
    report = json.loads((out / "run.json").read_text())
    assert report["state"] == "interrupted"
    assert 4 <= report["frames"] < 3000
    masks = sorted(path.name for path in (out / "masks").iterdir())
    assert masks == [f"{index:05d}.png" for index in range(report["frames"])]
    assert not list(out.rglob("*partial*"))


def test_damage_of_the_video_is_a_warning(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr(VideoStream, "warnings", ["the video is damaged"])
    assert run("@clip.mp4", "--mask", "@first.png", "-o", "res") == 0
    assert capsys.readouterr().err == "warning: the video is damaged\n"
    assert json.loads(Path("res/run.json").read_text())["warnings"] == ["the video is damaged"]


_THREADS_OF_A_RUN = """
import json, os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
del sys.argv[1]
from mpn.cli.main import main_run
from mpn.engines.onnxruntime import engine
found, check = {}, engine.check_interface
def noted(path, spec, session):
    found["onnxruntime"] = session.get_session_options().intra_op_num_threads
    return check(path, spec, session)
engine.check_interface = noted
try:
    main_run()
except SystemExit as end:
    import cv2, threadpoolctl
    found |= {"exit": end.code, "opencv": cv2.getNumThreads()}
    found["blas"] = max(each["num_threads"] for each in threadpoolctl.threadpool_info())
    print(json.dumps(found))
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores and a system that limits processes to some of them",
)
def test_run_on_one_core_uses_one_thread_per_library(inputs: Path, tmp_path: Path) -> None:
    """With all cores (control) the defaults are 0, all, and the cores of the host."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    found = {}
    for cores in ("one", "all"):
        command = [sys.executable, "-c", _THREADS_OF_A_RUN, cores, str(inputs / "clip.mp4")]
        command += ["--mask", str(inputs / "first.png"), "--out", str(tmp_path / cores)]
        command += ["--engine-dir", str(inputs / "engines"), "--backend", "cpu", "--quiet"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=True
        )
        found[cores] = json.loads(done.stdout.splitlines()[-1])
    assert found["one"] == {"onnxruntime": 1, "exit": 0, "opencv": 1, "blas": 1}
    assert found["all"]["exit"] == found["all"]["onnxruntime"] == 0
    assert min(found["all"]["opencv"], found["all"]["blas"]) > 1


@pytest.mark.parametrize("threads", ["0", "-1", "1.5", "two"])
def test_threads_that_are_no_number_are_one_line(run, capsys, threads: str) -> None:
    assert run("@clip.mp4", "--mask", "@first.png", "--threads", threads) == 2
    error = capsys.readouterr().err
    assert "threads" in error


def test_threads_above_the_machine_are_lowered(run, capsys) -> None:
    assert run("@clip.mp4", "--mask", "@first.png", "--threads", "1000") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "1000" in line]
    assert len(lines) == 1
    assert "is used" in lines[0]

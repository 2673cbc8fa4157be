from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report.schema import load_result
from benchmarks.speed import scaling
from benchmarks.speed.scaling import line_fit, main, side_from_text, size_hw_from_height
from mpn.errors import InputError
from mpn.runtime.bench.figures import WallRun
from mpn.runtime.media.video import open_video
from mpn.runtime.session.request import RunRequest


def test_line_fit_returns_line_and_residual() -> None:
    """A point off the line changes the residual."""
    xs = [1, 2, 5, 16]
    exact = line_fit(xs, [30 + 7.5 * x for x in xs])
    assert exact == {
        "fixed_ms": 30.0,
        "slope_ms": 7.5,
        "residual_ms": 0.0,
        "residual_max_ms": 0.0,
    }
    bent = line_fit([0, 1, 2], [0.0, 3.0, 0.0])
    assert bent is not None
    assert (bent["slope_ms"], bent["fixed_ms"]) == (0, 1)
    assert (bent["residual_ms"], bent["residual_max_ms"]) == (pytest.approx(2**0.5, abs=1e-3), 2)
    assert line_fit([3], [1.0]) is None


def test_size_and_side_texts_are_read_or_refused() -> None:
    heights = (240, 360, 480, 720, 1080, 2160)
    widths = [size_hw_from_height(f"{height}p")[1] for height in heights]
    assert widths == [426, 640, 854, 1280, 1920, 3840]
    assert side_from_text("int8=a,backend=openvino")[1].backend == "openvino"
    for text in ("a", "=a", "a=", "a=b,backend=none"):
        with pytest.raises(InputError, match="is not NAME=DIR"):
            side_from_text(text)
    with pytest.raises(InputError, match="even height"):
        size_hw_from_height("481p")


def test_scaling_writes_sweeps_of_interleaved_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run takes 10 ms + 5 ms per object and reads a video of its size."""
    seen: list[str] = []

    def run(request: RunRequest) -> WallRun:
        with open_video(request.video) as video:
            frames = list(video)
        (mask,) = request.masks.values()
        objects = int(mask.stem.split("-")[1])
        seen.append(f"{request.backend} {objects} {frames[0].rgb.shape[1]} {len(frames)}")
        frame_s = 0.01 + 0.005 * objects
        done_s = tuple(0.1 + frame_s * t for t in range(len(frames)))
        stage = {f"{key}_s": frame_s for key in ("min", "median", "p95")}
        report = {
            "stages": {"propagation": {"frames": len(frames), **stage}},
            "frames": len(frames),
            "finetune": {},
            "backend": {"used": request.backend},
        }
        return WallRun(report, done_s, done_s[-1], 300.0 + objects)

    monkeypatch.setattr(scaling, "run_wall_apart", run)
    out = tmp_path / "scaling.json"
    engines = scaling.default_engine_dir()
    arguments = ["--engine-dir", f"a={engines}", "--engine-dir", f"b={engines},backend=auto"]
    arguments += ["--objects", "1,3", "--frame-size", "96x64", "--sizes", "64p,96p"]
    arguments += ["--lengths", "8,20", "--length-size", "64p", "--frames", "6"]
    arguments += ["--warmup", "1", "--repeats", "2", "--clip-frames", "2", "-o", str(out)]
    monkeypatch.setattr("sys.argv", ["scaling", *arguments])
    assert main() == 0
    once = ["cpu 1 96 6", "auto 1 96 6", "cpu 3 96 6", "auto 3 96 6"]
    assert seen[:8] == [*once, once[1], once[0], once[3], once[2]]
    assert seen[-2:] == ["cpu 1 114 8", "cpu 1 114 20"]
    sweeps = load_result(out)["sweeps"]
    assert list(sweeps["length"]) == ["a"]
    for name in ("a", "b"):
        fit = sweeps["k"][name]["fit"]
        assert (fit["fixed_ms"], fit["slope_ms"]) == (10, 5)
        assert sweeps["k"][name]["stage_fits"]["propagation"]["slope_ms"] == 5
        assert sweeps["k"][name]["memory_slope_mib"] == 1
        assert sweeps["size"][name]["fit"]["slope_ms"] == 0
    assert sweeps["length"]["a"]["fit"]["slope_ms"] == 15
    assert "k, b: 10.0 ms + 5 ms per object" in capsys.readouterr().out


def test_scaling_unusable_sweep_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in ((["--only", "depth"], "takes k"), (["--frames", "5"], "too few")):
        monkeypatch.setattr("sys.argv", ["scaling", *arguments, "-o", str(tmp_path / "a.json")])
        assert main() == 1
        assert message in capsys.readouterr().err

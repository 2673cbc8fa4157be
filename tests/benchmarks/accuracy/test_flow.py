from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.accuracy.flow import main
from benchmarks.report.schema import load_result
from tests.builders.engine_dirs import make_engine_dir

SHIFT_PX = (3.0, 1.0)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write blurred noise and the same image moved by whole pixels."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (120, 160, 3), np.uint8), (0, 0), 3)
    picture = cv2.normalize(wide, None, 0, 255, cv2.NORM_MINMAX)
    moved = np.roll(picture, (int(SHIFT_PX[1]), int(SHIFT_PX[0])), axis=(0, 1))
    cv2.imwrite(str(folder / "a-img0.png"), picture)
    cv2.imwrite(str(folder / "a-img1.png"), moved)
    flow_px = np.full((120, 160, 2), SHIFT_PX, np.float32)
    cv2.writeOpticalFlow(str(folder / "a-gt.flo"), flow_px)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["flow_accuracy.py", *map(str, arguments)])
    return int(main())


def test_flow_errors_of_dis_engine_and_no_motion(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = make_engine_dir(tmp_path / "right", with_flow=True, flow_px=SHIFT_PX)
    out = tmp_path / "flow.json"
    arguments = ("--pairs", pairs, "--engine-dir", right, "--threads", "1", "-o", out)
    assert run(monkeypatch, *arguments) == 0
    sources = {name: found["epe_px"] for name, found in load_result(out)["sources"].items()}
    assert sources["no motion"] == pytest.approx(np.hypot(*SHIFT_PX), abs=1e-5)
    assert sources["DIS medium"] < 0.7
    # The engine returns (3, 1) at 128x64: 160/128 and 120/64 times as far in the image.
    expected = np.hypot(3 * 160 / 128 - 3, 120 / 64 - 1)
    assert sources["tiny (engine)"] == pytest.approx(expected, abs=1e-3)


def test_flow_folder_without_pairs_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "flow.json"
    assert run(monkeypatch, "--pairs", tmp_path, "-o", out) == 1
    assert "has no pairs" in capsys.readouterr().err
    assert not out.exists()

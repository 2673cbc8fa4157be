from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed.roofline import BYTES, GPUS, Gpu, Layer, layers, least_seconds, main
from tests.builders.engine_dirs import make_engine_dir

SIDE = 65


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engines", with_osvos=True, roi_size=SIDE)


def test_layers_count_operations_and_bytes(directory: Path) -> None:
    """The graph is one 1x1 convolution of 4 channels to 1."""
    for objects in (1, 3):
        (layer,) = layers(directory / "propagation.onnx", objects=objects)
        pixels = objects * SIDE * SIDE
        assert layer.flop == 2 * 4 * pixels
        assert layer.nbytes == BYTES * (4 * pixels + 4 + pixels)


def test_least_seconds_takes_longer_of_both() -> None:
    gpu = Gpu("any", "sm_90", tflops=1, gb_s=1000)
    busy, heavy = Layer("a", 2e12, 1e9), Layer("b", 1e6, 3e12)
    assert least_seconds([busy], gpu) == 2.0
    assert least_seconds([heavy], gpu) == 3.0
    assert least_seconds([busy, heavy], gpu) == 5.0


def test_roofline_table_is_not_measured(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["roofline.py", str(directory), "--gpus", "H200,L4"])
    assert main() == 0
    printed = capsys.readouterr().out
    assert printed.count("not measured") == 2
    assert "| H200 | 989 | 4800 |" in printed
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)

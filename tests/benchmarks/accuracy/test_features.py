from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.accuracy.features import main, weights_of
from benchmarks.report.schema import load_result
from mpn.errors import CheckpointError
from mpn.export.description import variant_name
from mpn.networks.build import build_network
from tests.builders.engine_dirs import make_engine_dir
from tests.networks.test_features import public_lite0


def test_weights_of_imagenet_file_have_requested_depth() -> None:
    state, path = public_lite0(), Path("lite0.pth")
    shallow, deep = (weights_of(state, stride, path) for stride in (16, 32))
    assert len(shallow.state_dict) < len(deep.state_dict)
    assert [variant_name(weights) for weights in (shallow, deep)] == [
        "efficientnet-lite0-os16", "efficientnet-lite0-os32",
    ]  # fmt: skip
    build_network(deep)
    with pytest.raises(CheckpointError, match=r"lite0\.pth is no file of an ImageNet network"):
        weights_of({}, 16, path)


@pytest.mark.fullsize
def test_features_command_measures_each_combination(
    davis_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval changes the masks, and the size the engine."""
    trunk, out = tmp_path / "lite0.pth", tmp_path / "features.json"
    torch.save(public_lite0(), trunk)
    engine_dir = make_engine_dir(tmp_path / "engines")
    arguments = [trunk, "--davis-root", davis_folder, "--set", "val", "--sequences", "koi"]
    arguments += ["--engine-dir", engine_dir, "--sizes", "97x65", "--strides", "16"]
    arguments += ["--every", "1,4", "--runs", "2", "--threads", "1", "-o", out]
    monkeypatch.setattr("sys.argv", ["features", *map(str, arguments)])
    assert main() == 0
    rows = load_result(out)["results"]
    assert [row["name"] for row in rows] == [f"97x65, stride 16, every {every}" for every in (1, 4)]
    assert rows[0]["J-Mean"] != rows[1]["J-Mean"]
    assert rows[0]["features"] == rows[1]["features"]
    assert rows[0]["features"]["n"] == 2
    assert rows[0]["scores"].keys() == {"koi_1"}

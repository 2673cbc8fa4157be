from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.open import open_engines
from mpn.engines.openvino.engine import OpenVinoEngine
from mpn.engines.spec import osvos_spec, propagation_spec
from mpn.errors import EngineError, MissingExtraError
from mpn.types import Float32Array
from tests.builders.engine_dirs import make_engine_dir, model_for, save_model

SPEC = propagation_spec(65, 2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engines", with_flow=True, with_osvos=True)


def crops(objects: int) -> Float32Array:
    return np.random.default_rng(objects).random((objects, 4, 65, 65), dtype=np.float32)


def test_openvino_returns_what_onnxruntime_does(directory: Path) -> None:
    with (
        OpenVinoEngine(directory / "propagation.onnx", SPEC, threads=1) as engine,
        OrtEngine(directory / "propagation.onnx", SPEC, threads=1) as reference,
    ):
        for objects in (1, 3, 1):
            rgb_prob = crops(objects)
            kept = engine.run({"rgb_prob": rgb_prob})["prob"]
            expected = reference.run({"rgb_prob": rgb_prob})["prob"]
            engine.run({"rgb_prob": 1 - rgb_prob})  # the caller owns the outputs
            assert kept.dtype == np.float32
            np.testing.assert_array_equal(kept, expected)
            assert not np.array_equal(engine.run({"rgb_prob": 1 - rgb_prob})["prob"], expected)


def test_openvino_runs_all_roles_if_requested(directory: Path) -> None:
    with open_engines(directory, backend="openvino", threads=1) as engines:
        assert engines.backend == "openvino"
        assert engines.backend_note == "openvino, as requested"
        assert engines.is_on_host
        assert {engine.backend for engine in engines.engines.values()} == {"openvino"}
        assert engines.flow is not None
        frame = np.zeros((1, 3, 64, 128), np.float32)
        assert engines.flow.run({"frame0": frame, "frame1": frame})["flow_px"].shape == (
            1,
            2,
            64,
            128,
        )


def test_openvino_with_external_data_reads_it(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path, external_data=True)
    with OpenVinoEngine(directory / "propagation.onnx", SPEC) as engine:
        np.testing.assert_array_equal(engine.run({"rgb_prob": crops(2)})["prob"], crops(2)[:, 3:])


def test_openvino_is_never_chosen_by_auto(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with open_engines(directory, backend="auto") as engines:
        assert engines.backend == "cpu"


def test_openvino_without_its_package_names_the_extra(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"'openvino'.*extra \[openvino\]"):
        open_engines(directory, backend="openvino")


def test_openvino_refuses_what_does_not_fit(tmp_path: Path) -> None:
    save_model(model_for(osvos_spec((64, 96))), tmp_path / "osvos.onnx")
    with pytest.raises(EngineError, match="is not the propagation engine"):
        OpenVinoEngine(tmp_path / "osvos.onnx", SPEC)
    with pytest.raises(EngineError, match="is not the osvos engine"):
        OpenVinoEngine(tmp_path / "osvos.onnx", osvos_spec((64, 128)))
    (tmp_path / "damaged.onnx").write_bytes(b"garbage")
    for name in ("damaged.onnx", "missing.onnx"):
        with pytest.raises(EngineError, match=f"{name} cannot be loaded by OpenVINO"):
            OpenVinoEngine(tmp_path / name, SPEC)


def test_openvino_closed_or_empty_is_an_error(directory: Path) -> None:
    engine = OpenVinoEngine(directory / "propagation.onnx", SPEC)
    with pytest.raises(EngineError, match="give at least one object"):
        engine.run({"rgb_prob": crops(1)[:0]})
    with pytest.raises(EngineError, match="must be float32"):
        engine.run({"rgb_prob": crops(1)[:, :3]})
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.run({"rgb_prob": crops(1)})

"""The Triton repository, read by Triton's own schema."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from mpn.engines.open import default_engine_dir
from mpn.errors import OutputError
from mpn.export.triton import MODEL_FILE, export_triton
from tests.builders.engine_dirs import make_engine_dir


def schema() -> Any:
    """Module ``model_config_pb2`` of tritonclient, without the rest."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient is not installed: install the extra [dev]")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_engine_dir(
        tmp_path / "engines", with_flow=True, with_osvos=True, external_data=True
    )


def test_every_config_is_a_model_config_of_triton(directory: Path, tmp_path: Path) -> None:
    pb2 = schema()
    models = export_triton(directory, tmp_path / "repository")
    assert {model.role for model in models} == {"flow", "propagation", "osvos"}
    for model in models:
        folder = tmp_path / "repository" / model.name
        config = pb2.ModelConfig()
        text_format.Parse((folder / "config.pbtxt").read_text(), config)  # unknown fields raise
        assert config.name == folder.name
        assert (config.backend, config.default_model_filename) == ("onnxruntime", MODEL_FILE)
        session = onnxruntime.InferenceSession(str(folder / "1" / MODEL_FILE))
        for tensors, real in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert [tensor.name for tensor in tensors] == [tensor.name for tensor in real]
            for tensor, other in zip(tensors, real, strict=True):
                assert tensor.data_type == pb2.TYPE_FP32
                has_batch = config.max_batch_size > 0
                assert list(tensor.dims) == list(other.shape[1 if has_batch else 0 :])


def test_objects_are_the_batch_and_frames_are_not(directory: Path, tmp_path: Path) -> None:
    pb2 = schema()
    for model in export_triton(directory, tmp_path / "repository"):
        config = text_format.Parse(model.config, pb2.ModelConfig())
        assert config.max_batch_size == (4 if model.role == "propagation" else 0)
        assert config.HasField("dynamic_batching") == (model.role == "propagation")


def test_a_word_that_the_schema_does_not_have_is_found(directory: Path, tmp_path: Path) -> None:
    """Control."""
    pb2 = schema()
    model = export_triton(directory, tmp_path / "repository")[0]
    for wrong in (
        model.config.replace("max_batch_size", "max_batches"),
        model.config.replace("TYPE_FP32", "FLOAT"),
    ):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(wrong, pb2.ModelConfig())


def test_the_graphs_of_the_package_run_from_their_repository(tmp_path: Path) -> None:
    """Graphs find their external data in the same folder."""
    models = export_triton(default_engine_dir(), tmp_path / "repository")
    (name,) = [model.name for model in models if model.role == "propagation"]
    session = onnxruntime.InferenceSession(str(tmp_path / "repository" / name / "1" / MODEL_FILE))
    (packed,) = session.get_inputs()
    _, channels, size, _ = packed.shape
    (prob,) = session.run(None, {packed.name: np.zeros((1, channels, size, size), np.float32)})
    assert prob.shape == (1, 1, size, size)


def test_a_folder_that_holds_something_is_left_alone(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    target.mkdir()
    export_triton(directory, target)
    with pytest.raises(OutputError, match="not empty"):
        export_triton(directory, target)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mpn._common.files import sha256_of_file
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import Manifest, load_manifest
from mpn.engines.onnxruntime import reweight as swap
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.onnxruntime.reweight import open_finetuned_engine
from mpn.engines.spec import Precision, Role
from mpn.engines.weights import read_weights
from mpn.errors import EngineError, ManifestError, OutputError
from mpn.types import Float32Array
from tests.builders.finetune_dirs import ROLES, make_adapt_dir

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


@pytest.fixture(scope="module", params=PRECISIONS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swap") / "engines"
    return make_adapt_dir(folder, precision=request.param)


@pytest.fixture(scope="module")
def manifest(directory: Path) -> Manifest:
    return load_manifest(directory)


def inputs_of(manifest: Manifest, role: Role) -> dict[str, Float32Array]:
    tensor = manifest.spec(role).inputs[0]
    shape = tuple(1 if isinstance(size, str) else size for size in tensor.shape)
    return {tensor.name: np.random.default_rng(3).standard_normal(shape, np.float32)}


def own_weights(directory: Path, manifest: Manifest, role: Role) -> dict[str, Float32Array]:
    entry = manifest.roles[role].adapt
    assert entry is not None
    return read_weights(directory, entry.tensors)


def opened(directory: Path, manifest: Manifest, role: Role, weights: Any, **more: Any) -> Any:
    return open_finetuned_engine(directory, manifest, role, weights, threads=1, **more)


def exported_with(
    directory: Path, manifest: Manifest, role: Role, weights: Mapping[str, Float32Array], to: Path
) -> OrtEngine:
    """Open a session on a graph in which the ``onnx`` package wrote other weights."""
    entry = manifest.roles[role].adapt
    assert entry is not None
    known = {tensor.name: tensor for tensor in entry.tensors}
    model = onnx.load(directory / f"{role}.onnx")  # with its data
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            dtype = numpy_helper.to_array(tensor).dtype
            stored = (weights[tensor.name] * np.float32(known[tensor.name].scale)).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(stored, tensor.name))
    onnx.save_model(model, to)
    return OrtEngine(to, manifest.spec(role), threads=1)


@pytest.mark.parametrize("role", ROLES)
def test_unchanged_weights_give_the_same_output_to_the_last_bit(
    directory: Path, manifest: Manifest, role: Role
) -> None:
    inputs = inputs_of(manifest, role)
    weights = own_weights(directory, manifest, role)
    with (
        opened(directory, manifest, role, weights) as adapted,
        opened(directory, manifest, role, {}) as untouched,
        OrtEngine(directory / f"{role}.onnx", manifest.spec(role), threads=1) as own,
    ):
        assert adapted.changed == untouched.changed == ()
        expected = own.run(inputs)["prob"]
        np.testing.assert_array_equal(adapted.run(inputs)["prob"], expected)
        np.testing.assert_array_equal(untouched.run(inputs)["prob"], expected)


@pytest.mark.parametrize("role", ROLES)
def test_reweighted_graph_equals_exported_graph(
    directory: Path, manifest: Manifest, role: Role, tmp_path: Path
) -> None:
    inputs = inputs_of(manifest, role)
    weights = own_weights(directory, manifest, role)
    with OrtEngine(directory / f"{role}.onnx", manifest.spec(role), threads=1) as own:
        before = own.run(inputs)["prob"]
    for name, values in weights.items():
        changed = {name: values + np.float32(0.25)}
        with (
            opened(directory, manifest, role, changed) as adapted,
            exported_with(directory, manifest, role, changed, tmp_path / "graph.onnx") as fresh,
        ):
            assert adapted.changed == (name,)
            result = adapted.run(inputs)["prob"]
            np.testing.assert_array_equal(result, fresh.run(inputs)["prob"])
            assert np.abs(result - before).max() > 1e-3  # control: the output changes


def test_the_directory_is_left_as_it_was(
    directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    digests = {path.name: sha256_of_file(path) for path in directory.iterdir()}
    weights = {name: -values for name, values in own_weights(directory, manifest, "osvos").items()}
    with opened(directory, manifest, "osvos", weights, work_dir=tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    assert {path.name: sha256_of_file(path) for path in directory.iterdir()} == digests


def test_engines_of_two_objects_do_not_disturb_each_other(
    directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    inputs = inputs_of(manifest, "osvos")
    weights = own_weights(directory, manifest, "osvos")
    one = {name: values + np.float32(0.25) for name, values in weights.items()}
    other = {name: values - np.float32(0.25) for name, values in weights.items()}
    with opened(directory, manifest, "osvos", one, work_dir=tmp_path) as first:
        expected = first.run(inputs)["prob"]
        with opened(directory, manifest, "osvos", other, work_dir=tmp_path) as second:
            assert not np.array_equal(second.run(inputs)["prob"], expected)
            np.testing.assert_array_equal(first.run(inputs)["prob"], expected)
        np.testing.assert_array_equal(first.run(inputs)["prob"], expected)


def test_an_open_engine_of_the_directory_saves_opening_it_again(
    directory: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counted(OrtEngine):
        def __init__(self, path: Any, *args: Any, **options: Any) -> None:
            made.append(str(path))
            super().__init__(path, *args, **options)

    with OrtEngine(directory / "osvos.onnx", manifest.spec("osvos"), threads=1) as base:
        monkeypatch.setattr(swap, "OrtEngine", Counted)
        opened(directory, manifest, "osvos", {}, base=base).close()
        assert len(made) == 1
        opened(directory, manifest, "osvos", {}).close()
        assert len(made) == 3


def test_weights_that_do_not_arrive_are_noticed(
    directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """A graph with internal weights does not read its external data file."""
    broken = tmp_path / "engines"
    make_adapt_dir(broken, precision=manifest.roles["osvos"].precision)
    model = onnx.load(broken / "osvos.onnx")
    onnx.save_model(model, broken / "osvos.onnx")  # onnx.load has taken the data in
    entry = dataclasses.replace(
        manifest.roles["osvos"], sha256=sha256_of_file(broken / "osvos.onnx")
    )
    deaf = dataclasses.replace(manifest, roles={**manifest.roles, "osvos": entry})
    weights = own_weights(directory, manifest, "osvos")
    changed = {name: values + np.float32(0.25) for name, values in weights.items()}
    with pytest.raises(
        EngineError, match="has the same outputs although its weights were replaced"
    ):
        opened(broken, deaf, "osvos", changed, work_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]


def test_a_change_too_small_to_show_is_no_error(directory: Path, manifest: Manifest) -> None:
    """The positive control separates it from weights that do not arrive."""
    weights = own_weights(directory, manifest, "osvos")
    tiny = {"fuse.bias": np.full(1, 2.0**-24, np.float32)}  # half's smallest number
    zero = {
        "fuse.weight": np.zeros_like(weights["fuse.weight"]),
        "fuse.bias": np.ones(1, np.float32),
    }
    dead = {"stages.0.0.bias": weights["stages.0.0.bias"] + np.float32(0.25), **zero}
    for change in (tiny, dead):
        with opened(directory, manifest, "osvos", change) as adapted:
            assert adapted.changed


def test_reweighted_engine_with_other_output_is_refused(
    directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    class Other:
        def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
            return {"prob": np.zeros((1, 1, 64, 96), np.float32)}

    with pytest.raises(EngineError, match="with unchanged weights has other outputs"):
        opened(directory, manifest, "osvos", {}, base=Other(), work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_refused(directory: Path, manifest: Manifest) -> None:
    with pytest.raises(EngineError, match=r"'head\.weight' is not one of the 6"):
        opened(directory, manifest, "osvos", {"head.weight": np.zeros(1, np.float32)})
    with pytest.raises(EngineError, match="is not finite"):
        opened(directory, manifest, "osvos", {"fuse.bias": np.full(1, np.nan, np.float32)})
    too_large = {"fuse.bias": np.full(1, 1e5, np.float32)}
    if manifest.roles["osvos"].precision == "fp16":
        with pytest.raises(EngineError, match=r"does not fit float16: .* --precision fp32"):
            opened(directory, manifest, "osvos", too_large)
    else:
        opened(directory, manifest, "osvos", too_large).close()


def test_a_folder_that_cannot_be_written_is_an_output_error(
    directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="a folder for the osvos engine cannot be made"):
        opened(directory, manifest, "osvos", {}, work_dir=tmp_path / "missing")


def test_a_path_that_leaves_the_directory_is_refused(
    directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    entry = manifest.roles["osvos"]
    assert entry.adapt is not None
    outside = "../osvos.onnx.data"
    moved = dataclasses.replace(
        entry,
        external_data=(FileDigest(outside, entry.external_data[0].sha256),),
        adapt=dataclasses.replace(
            entry.adapt,
            tensors=tuple(dataclasses.replace(t, file=outside) for t in entry.adapt.tensors),
        ),
    )
    crooked = dataclasses.replace(manifest, roles={**manifest.roles, "osvos": moved})
    with pytest.raises(ManifestError, match=r"contains '\.\.'"):
        opened(directory, crooked, "osvos", {}, work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []

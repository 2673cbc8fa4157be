from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpn._common.files import sha256_of_file
from mpn._common.records import json_from_record
from mpn.engines.directory.manifest import load_manifest, save_manifest, verify_digests
from mpn.engines.open import open_engines
from mpn.errors import ManifestError
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.finetune_dirs import ROLES, make_adapt_dir
from tests.engines.directory.test_manifest import Json, rewrite


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_adapt_dir(tmp_path / "engines")


def test_saved_manifest_with_adapt_loads_equal(directory: Path) -> None:
    manifest = load_manifest(directory)
    save_manifest(directory, manifest)
    assert load_manifest(directory) == manifest
    entry = manifest.roles["osvos"].adapt
    assert entry is not None
    assert (entry.optimizer, entry.state) == ("sgd", ("momentum",))
    assert [tensor.name for tensor in entry.trained("head")] == [
        "side_prep.0.weight",
        "side_prep.0.bias",
        "fuse.weight",
        "fuse.bias",
    ]
    assert len(entry.trained("all")) == 6
    assert [file.path for file in entry.scope_files("head")] == [
        "osvos_adapt_head.onnx",
        "osvos_features.onnx",
    ]
    assert [file.path for file in entry.scope_files("all")] == ["osvos_adapt.onnx"]


def test_manifest_without_adapt_has_no_such_field(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path / "engines")
    manifest = load_manifest(directory)
    assert manifest.schema_version == 1
    assert manifest.roles["propagation"].adapt is None
    assert "adapt" not in manifest.roles["propagation"].as_json()
    assert manifest.roles["propagation"].all_files == manifest.roles["propagation"].files


def test_inference_needs_no_graph_of_fine_tuning(directory: Path) -> None:
    for role in ROLES:
        (directory / f"{role}_adapt.onnx").unlink()
    manifest = load_manifest(directory)
    verify_digests(directory, manifest)
    with open_engines(directory, backend="cpu", threads=1) as engines:
        assert set(engines.engines) == set(ROLES)
    with pytest.raises(ManifestError, match=r"propagation_adapt\.onnx is missing"):
        verify_digests(directory, manifest, with_adapt=True)


def test_changed_graph_of_fine_tuning_is_refused(directory: Path) -> None:
    path = directory / "osvos_features.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    manifest = load_manifest(directory)
    verify_digests(directory, manifest, with_adapt=False)
    with pytest.raises(ManifestError, match=r"osvos_features\.onnx .* has changed"):
        verify_digests(directory, manifest, with_adapt=True)


def _adapt(value: Json) -> Json:
    found: Json = value["roles"]["osvos"]["adapt"]
    return found


def _tensor(value: Json) -> Json:
    found: Json = _adapt(value)["tensors"][0]
    return found


def _set(where: Callable[[Json], Json], **fields: Any) -> Callable[[Json], object]:
    return lambda value: where(value).update(fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            _set(_adapt, optimizer="lion"),
            "osvos.adapt.optimizer' must be one of 'adamw', 'sgd', got 'lion'",
        ),
        (_set(_adapt, graphs={}), r"'roles\.osvos\.adapt\.graphs\.all' is missing"),
        (
            lambda value: _adapt(value)["graphs"].update(tail={}),
            "adapt.graphs.tail' is unknown: use one of 'all', 'head'",
        ),
        (
            lambda value: _adapt(value)["graphs"].pop("head"),
            r"'roles\.osvos\.adapt\.graphs\.head' is missing: features\.head needs",
        ),
        (_set(_adapt, state=[1]), r"adapt\.state\[0\]' must be a string, got 1"),
        (
            lambda value: _adapt(value)["tensors"].append(_tensor(value)),
            "adapt.tensors' has the weight .* twice",
        ),
        (
            _set(_tensor, shape=[4, 3, 3, "k"]),
            r"adapt\.tensors\[0\]\.shape\[3\]' must be an integer, got 'k'",
        ),
        (_set(_tensor, shape=[4, 3, 3]), r"tensors\[0\]\.nbytes' must be 144 for float32"),
        (_set(_tensor, shape=[4, 3, 3, -3]), r"tensors\[0\]\.shape' must hold sizes"),
        (_set(_tensor, nbytes=431), "nbytes' must be 432 .*, got 431"),
        (
            _set(_tensor, offset=-4),
            r"'roles\.osvos\.adapt\.tensors\[0\]\.offset' must be at least 0, got -4",
        ),
        (_set(_tensor, dtype="float64"), "dtype' must be one of 'float16', 'float32'"),
        (_set(_tensor, scale=0), r"tensors\[0\]\.scale' must be over 0"),
        (
            _set(_tensor, scopes=["all", "tail"]),
            r"scopes\[1\]' must be one of 'all', 'head', got 'tail'",
        ),
        (_set(_tensor, scopes=["all", "all"]), "scopes' must have each scope once"),
        (_set(_tensor, file="other.data"), r"tensors\[0\]\.file' must be one of external_data"),
        (
            lambda value: _adapt(value)["graphs"]["all"].update(path="../osvos_adapt.onnx"),
            r"adapt\.graphs\.all\.path': .*contains '\.\.'",
        ),
        (
            lambda value: _adapt(value)["features"]["head"].update(path="/etc/passwd"),
            r"adapt\.features\.head\.path': .*is absolute",
        ),
        (
            lambda value: _adapt(value)["graphs"]["all"].update(sha256="x"),
            r"graphs\.all\.sha256' must be 64",
        ),
    ],
)
def test_wrong_adapt_field_is_one_line(
    directory: Path, change: Callable[[Json], object], says: str
) -> None:
    rewrite(directory, change)
    with pytest.raises(ManifestError, match=says) as info:
        load_manifest(directory)
    assert "\n" not in str(info.value)


def test_offsets_equal_those_of_the_graph(directory: Path) -> None:
    """The index repeats the tensors of the graph, for a runtime without onnx."""
    import onnx

    for role in ROLES:
        manifest = load_manifest(directory)
        entry = manifest.roles[role].adapt
        assert entry is not None
        graph = onnx.load(directory / f"{role}.onnx", load_external_data=False).graph
        found = {}
        for tensor in graph.initializer:
            where = {item.key: item.value for item in tensor.external_data}
            found[tensor.name] = (where["location"], int(where["offset"]), int(where["length"]))
        assert {t.name: (t.file, t.offset, t.nbytes) for t in entry.tensors} == found
        assert sha256_of_file(directory / f"{role}.onnx.data") == (
            manifest.roles[role].external_data[0].sha256
        )
        assert json.dumps(json_from_record(entry))

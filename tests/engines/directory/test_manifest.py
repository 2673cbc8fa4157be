from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpn.engines.directory.manifest import (
    FileDigest,
    FlowSource,
    Manifest,
    OsvosPreprocessing,
    Preprocessing,
    PropagationPreprocessing,
    load_manifest,
    save_manifest,
    utc_now_iso,
    verify_digests,
)
from mpn.engines.spec import propagation_spec
from mpn.errors import ManifestError, OutputError
from tests.builders.engine_dirs import MANIFEST_0_1, make_engine_dir
from tests.emulation.engines import fake_engine_set, fourth_channel

Json = dict[str, Any]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engines", with_flow=True, with_osvos=True)


def rewrite(directory: Path, change: Callable[[Json], object]) -> None:
    """Edit manifest.json as a user with a text editor does."""
    file = directory / "manifest.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def test_manifest_of_0_1_is_rewritten_byte_by_byte(tmp_path: Path) -> None:
    """Order, indentation and numbers stay."""
    (tmp_path / "manifest.json").write_bytes(MANIFEST_0_1.read_bytes())
    manifest = load_manifest(tmp_path)
    assert manifest.provenance.tool_version == "0.1.0"
    assert save_manifest(tmp_path, manifest).read_bytes() == MANIFEST_0_1.read_bytes()
    other = replace(manifest, name="other")  # control
    assert save_manifest(tmp_path, other).read_bytes() != MANIFEST_0_1.read_bytes()


def test_saved_manifest_loads_equal(tmp_path: Path) -> None:
    manifest = fake_engine_set(
        osvos=fourth_channel,
        preprocessing=Preprocessing(
            PropagationPreprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
            OsvosPreprocessing("rgb", (1.0, 2.0, 3.0)),
        ),
        flow_source=FlowSource("opencv-dis", "ultrafast", 0.5),
        runtime_defaults={"crf": False, "margin": 0.15, "iterations": 5, "rule": "mean", "x": None},
    ).manifest
    entry = manifest.roles["propagation"]
    half = replace(
        entry,
        precision="fp16",
        half_weights=3,
        total_weights=7,
        external_data=(FileDigest("weights/propagation.data", "a" * 64),),
    )
    manifest = replace(manifest, roles={**manifest.roles, "propagation": half})
    save_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path) == manifest


def test_five_channels_are_read_from_the_inputs(directory: Path) -> None:
    manifest = load_manifest(directory)
    assert manifest.propagation_channels == 4
    spec = propagation_spec(manifest.roi_size, manifest.max_objects, 5)
    entry = replace(manifest.roles["propagation"], inputs=spec.inputs)
    save_manifest(directory, replace(manifest, roles={**manifest.roles, "propagation": entry}))
    loaded = load_manifest(directory)
    assert loaded.propagation_channels == 5
    assert loaded.spec("propagation") == spec
    # control: the name and the channels must agree
    rewrite(directory, lambda m: m["roles"]["propagation"]["inputs"][0].update(name="rgb_prob"))
    with pytest.raises(ManifestError, match=r"a propagation engine of these sizes has rgb_prob"):
        load_manifest(directory)


def test_saving_twice_leaves_the_second_content(directory: Path) -> None:
    manifest = load_manifest(directory)
    before = {path.name for path in directory.iterdir()}
    save_manifest(directory, replace(manifest, name="second"))
    assert load_manifest(directory).name == "second"
    assert {path.name for path in directory.iterdir()} == before


def test_command_line_that_is_no_unicode_loads_equal(directory: Path) -> None:
    manifest = load_manifest(directory)
    command = "mpn-export \udcff.pth"  # how Python hands over a file name that is no UTF-8
    save_manifest(
        directory, replace(manifest, provenance=replace(manifest.provenance, command=command))
    )
    assert load_manifest(directory).provenance.command == command


def test_save_into_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    manifest = fake_engine_set().manifest
    with pytest.raises(OutputError, match=r"cannot write .*manifest\.json"):
        save_manifest(tmp_path / "absent", manifest)


def test_save_path_outside_the_directory_writes_nothing(tmp_path: Path) -> None:
    manifest = fake_engine_set().manifest
    entry = replace(manifest.roles["propagation"], onnx="../propagation.onnx")
    with pytest.raises(ManifestError, match=r"'\.\.'"):
        save_manifest(tmp_path, replace(manifest, roles={"propagation": entry}))
    assert list(tmp_path.iterdir()) == []


def test_created_is_utc() -> None:
    assert utc_now_iso().endswith("+00:00")


def set_field(path: str, value: Any) -> Callable[[Json], None]:
    def change(manifest: Json) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            manifest = manifest[parent]
        manifest[last] = value

    return change


def delete_field(path: str) -> Callable[[Json], None]:
    def change(manifest: Json) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            manifest = manifest[parent]
        del manifest[last]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_field("schema_version", 2), "schema_version 2 is unknown.* reads 1;"),
        (set_field("schema_version", "1"), "'schema_version' must be an integer, got '1'"),
        (set_field("schema_version", True), "'schema_version' must be an integer, got True"),
        (delete_field("schema_version"), "'schema_version' is missing"),
        (delete_field("roi_size"), "'roi_size' is missing"),
        (set_field("roi_size", 65.0), "'roi_size' must be an integer, got 65.0"),
        (set_field("roi_size", 64), "'roi_size' does not fit: the ROI size must be 16"),
        (set_field("max_objects", 0), "'max_objects' must be at least 1, got 0"),
        (set_field("name", 3), "'name' must be a string, got 3"),
        (set_field("frame_size_hw", [64]), r"'frame_size_hw' must be a list of 2, got \[64\]"),
        (
            set_field("frame_size_hw", [64, True]),
            r"'frame_size_hw\[1\]' must be an integer, got True",
        ),
        (set_field("frame_size_hw", [0, 96]), "'frame_size_hw' must be positive"),
        (set_field("frame_size_hw", [480, 854]), "'roles.flow.inputs' is .*512,896.*export"),
        (set_field("preprocessing", []), "'preprocessing' must be a JSON object"),
        (set_field("preprocessing.propagation.mean_rgb", [0, 1]), "mean_rgb' must be a list of 3"),
        (set_field("preprocessing.propagation.std_rgb", [1, 0, 1]), "std_rgb' must be over 0"),
        (set_field("preprocessing.osvos.channel_order", "gbr"), "must be one of 'bgr', 'rgb'"),
        (set_field("flow", {"source": "raft"}), "'flow.source' must be one of 'engine'"),
        (set_field("flow", {"source": "opencv-dis", "preset": "fast"}), "'flow.scale' is missing"),
        (
            set_field("flow", {"source": "opencv-dis", "preset": "fast", "scale": 0}),
            "'flow.scale' must be over 0 and at most 1",
        ),
        (
            set_field("flow", {"source": "opencv-dis", "preset": "slow", "scale": 1}),
            "'flow.preset' must be one of",
        ),
        (delete_field("roles.flow"), "'roles.flow' is missing although"),
        (delete_field("roles.propagation"), "'roles.propagation' is missing"),
        (set_field("roles.depth", {}), "'roles.depth' is unknown: use one of 'features', 'flow'"),
        (set_field("roles.flow", None), "'roles.flow' must be a JSON object, got None"),
        (set_field("roles.flow.sha256", "00"), "'roles.flow.sha256' must be 64"),
        (set_field("roles.flow.onnx", ""), "'roles.flow.onnx' is empty"),
        (set_field("roles.flow.onnx", "../flow.onnx"), "'roles.flow.onnx': .*contains '\\.\\.'"),
        (set_field("roles.flow.onnx", "/tmp/flow.onnx"), "is absolute"),
        (
            set_field("roles.flow.external_data", [{"path": "../x", "sha256": "0" * 64}]),
            r"'roles\.flow\.external_data\[0\]\.path': .*contains '\.\.'",
        ),
        (set_field("roles.flow.external_data", [3]), r"external_data\[0\]' must be a JSON object"),
        (set_field("roles.flow.precision", "int4"), "'roles.flow.precision' must be one of"),
        (
            set_field("roles.flow.precision", "fp16"),
            "'roles.flow.precision' is fp16, which contradicts 0 half",
        ),
        (set_field("roles.osvos.half_weights", 1), "precision' is fp32, which contradicts 1 half"),
        (
            set_field("roles.osvos.half_weights", 2),
            "half_weights' must be at most total_weights, 1",
        ),
        (set_field("roles.osvos.half_weights", -7), "'roles.osvos.half_weights' must be at least"),
        (set_field("roles.osvos.opset", 0), "'roles.osvos.opset' must be at least 1, got 0"),
        (set_field("roles.flow.parameters", -7), "'roles.flow.parameters' must be at least 0"),
        (set_field("roles.osvos.inputs", []), "'roles.osvos.inputs' is nothing, but"),
        (
            lambda value: value["roles"]["propagation"]["inputs"][0]["shape"].__setitem__(1, 4.5),
            r"'roles\.propagation\.inputs\[0\]\.shape\[1\]' must be an integer or a string, got 4",
        ),
        (set_field("roles.osvos.outputs", [{"name": "prob"}]), r"outputs\[0\].* is missing"),
        (set_field("runtime_defaults", {"margin": [1]}), "'runtime_defaults.margin' must be"),
        (set_field("provenance.created", "yesterday"), "'provenance.created' must be a UTC time"),
        (set_field("provenance.created", "2026-01-01T00:00:00+02:00"), "must be a UTC time"),
        (set_field("provenance.created", "x" * 5000), "must be a UTC time as ISO 8601, got 'xxx"),
        (
            lambda value: value["roles"]["osvos"]["outputs"][0].update(shape=[1] * 5000),
            "'roles.osvos.outputs' is prob",
        ),
        (set_field("roles.osvos.onnx", "x" * 5000), "'roles.osvos.path' has 5000 characters"),
        (set_field("runtime_defaults", {"x" * 5000: 1}), "'runtime_defaults' has a long entry"),
        (set_field("runtime_defaults", {"osvos.every": "x" * 5000}), "has a long entry, 'osvos"),
        (delete_field("provenance.licence"), "'provenance.licence' is missing"),
    ],
)
def test_wrong_field_is_one_line_that_names_it(
    directory: Path, change: Callable[[Json], None], says: str
) -> None:
    load_manifest(directory)  # control: fine before the change
    rewrite(directory, change)
    with pytest.raises(ManifestError, match=says) as caught:
        load_manifest(directory)
    message = str(caught.value)
    assert message.startswith(f"{directory / 'manifest.json'}: ")
    assert "\n" not in message
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "invalid JSON"),
        (b"{", "invalid JSON .* line 1 column 2"),
        (b"[1]", "the file must be a JSON object"),
        (b'{"schema_version": NaN}', "NaN is not a JSON number"),
        (b'{"schema_version": 1e999}', "1e999 is beyond the largest number"),
        (b'{"schema_version": 1, "name": "a", "name": "b"}', "'name' stands twice"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (b"[" * 200_000, "invalid JSON"),
        (b'{"schema_version": ' + b"1" * 5000 + b"}", "invalid JSON|unknown"),
    ],
)
def test_damaged_json_is_one_line(directory: Path, content: bytes, says: str) -> None:
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=says) as caught:
        load_manifest(directory)
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_ignored(directory: Path) -> None:
    before = load_manifest(directory)
    rewrite(directory, set_field("note", {"by": "hand"}))
    assert load_manifest(directory) == before


def field_paths(value: Any, path: str = "") -> list[str]:
    """List the dotted path of each written field; entries of mappings do not count."""
    if not isinstance(value, dict):
        return []
    paths = []
    for name, nested in value.items():
        if path not in ("roles", "runtime_defaults"):
            paths.append(f"{path}.{name}".removeprefix("."))
        paths += field_paths(nested, f"{path}.{name}".removeprefix("."))
    return paths


def test_each_missing_field_is_named(directory: Path) -> None:
    """A default must not stand in for a field, for example for the preprocessing."""
    manifest = load_manifest(directory)
    paths = field_paths(manifest.as_json())
    assert {"preprocessing.osvos", "preprocessing.osvos.mean", "roles.flow.opset"} <= set(paths)
    for path in paths:
        save_manifest(directory, manifest)
        rewrite(directory, delete_field(path))
        with pytest.raises(ManifestError, match=rf"field '{path}' is missing"):
            load_manifest(directory)


def test_missing_dtype_of_a_tensor_is_named(directory: Path) -> None:
    rewrite(directory, lambda value: value["roles"]["flow"]["inputs"][1].pop("dtype"))
    with pytest.raises(ManifestError, match=r"'roles\.flow\.inputs\[1\]\.dtype' is missing"):
        load_manifest(directory)


def test_manifest_that_is_a_folder_is_an_error(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    (directory / "manifest.json").mkdir()
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(directory)


def test_manifest_cannot_be_built_with_contradictions() -> None:
    manifest = fake_engine_set().manifest
    with pytest.raises(ManifestError, match=r"roles\.flow"):
        replace(manifest, flow=FlowSource("engine"))


def test_spec_has_the_sizes_of_the_manifest() -> None:
    manifest = fake_engine_set(frame_size_hw=(480, 854), roi_size=513, max_objects=8).manifest
    assert manifest.spec("flow").inputs[0].shape == (1, 3, 512, 896)
    assert manifest.spec("propagation").max_objects == 8
    assert manifest.spec("osvos").outputs[0].shape == (1, 1, 480, 854)


def test_intact_directory_verifies(directory: Path) -> None:
    verify_digests(directory, load_manifest(directory))


@pytest.mark.parametrize("name", ["propagation.onnx", "propagation.onnx.data"])
def test_one_flipped_bit_is_named(tmp_path: Path, name: str) -> None:
    directory = make_engine_dir(tmp_path / "engines", external_data=True)
    manifest = load_manifest(directory)
    verify_digests(directory, manifest)
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(ManifestError, match=f"^{name} in .* has changed since export.*re-export"):
        verify_digests(directory, manifest)


def test_only_requested_roles_are_verified(directory: Path) -> None:
    manifest = load_manifest(directory)
    (directory / "osvos.onnx").write_bytes(b"other")
    verify_digests(directory, manifest, ("propagation", "flow"))
    with pytest.raises(ManifestError, match=r"osvos\.onnx"):
        verify_digests(directory, manifest)


def test_from_json_is_the_inverse_of_as_json(directory: Path) -> None:
    manifest = load_manifest(directory)
    assert Manifest.from_json(json.loads(json.dumps(manifest.as_json()))) == manifest

"""Quantise tiny engine directories on a synthetic split."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpn.cli.main import main_export
from mpn.engines.directory.locate import shipped_engine_dir
from mpn.engines.directory.manifest import load_manifest, save_manifest
from mpn.engines.open import open_engines
from mpn.errors import BackendError, ExportError, InputError
from mpn.masks import save_labels
from mpn.quantization.directory import QuantizationOptions, quantize_directory
from mpn.quantization.gate import InputSample, SequenceMasks, compared
from mpn.quantization.graph import (
    GraphQuantizer,
    _run,
    _session,
    float32_graph,
    quantized_convolutions,
)
from tests.builders.clips import Square, squares_clip
from tests.builders.engine_dirs import make_engine_dir

CLIP = squares_clip([Square(1, (20, 15), 24, (3, 2))], frames=5)


@pytest.fixture
def davis_root(tmp_path: Path) -> Path:
    root = tmp_path / "davis"
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("square\n")
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "480p/square").mkdir(parents=True)
    for index, (frame, labels) in enumerate(zip(CLIP.frames, CLIP.labels, strict=True)):
        image = root / f"JPEGImages/480p/square/{index:05d}.jpg"
        cv2.imwrite(str(image), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        save_labels(root / f"Annotations/480p/square/{index:05d}.png", labels)
    return root


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engines", with_osvos=True, external_data=True)


def wreck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate on inputs that are much smaller: values of the video saturate."""
    calibrated = GraphQuantizer._calibrated

    def too_small(self: GraphQuantizer) -> object:
        right = self.inputs
        self.inputs = [{name: a / 100 for name, a in one.items()} for one in right]
        try:
            return calibrated(self)
        finally:
            self.inputs = right

    monkeypatch.setattr(GraphQuantizer, "_calibrated", too_small)


def test_quantized_directory_runs_and_counts_operators(
    engines: Path, davis_root: Path, tmp_path: Path
) -> None:
    result = quantize_directory(
        engines, tmp_path / "int8", QuantizationOptions(davis_root, roles=("propagation",))
    )
    assert result.comparison.passes
    assert result.comparison.mask_iou > 0.985
    manifest = load_manifest(tmp_path / "int8")
    entry = manifest.roles["propagation"]
    assert entry.precision == "int8"
    assert entry.external_data == ()
    assert entry.quantized is not None
    assert (entry.quantized.operators, entry.quantized.total_operators) == (1, 1)
    assert entry.quantized.float_layers == ()
    assert entry.quantized.mask_iou == result.comparison.mask_iou
    assert entry.quantized.compared_on == "train: 1 sequences, 5 frames"
    assert quantized_convolutions(onnx.load(tmp_path / "int8/propagation.onnx")) == 1
    assert quantized_convolutions(onnx.load(engines / "propagation.onnx")) == 0
    assert manifest.roles["osvos"] == load_manifest(engines).roles["osvos"]
    rgb_prob = np.random.default_rng(0).random((2, 4, 65, 65), dtype=np.float32)
    for backend in ("cpu", "openvino"):
        with open_engines(tmp_path / "int8", backend=backend) as opened:  # type: ignore[arg-type]
            prob = opened.propagation.run({"rgb_prob": rgb_prob})["prob"]
        assert 0 < np.abs(prob - rgb_prob[:, 3:]).max() < 0.02


def test_wrecked_quantization_is_refused_and_writes_nothing(
    engines: Path,
    davis_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Control: the gate passes the same engines with right ranges, see above."""
    wreck(monkeypatch)
    before = sorted(tmp_path.iterdir())
    command = ["mpn-export", str(engines), "-o", str(tmp_path / "int8"), "--precision", "int8"]
    monkeypatch.setattr(sys, "argv", [*command, "--davis-root", str(davis_root), "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main_export()
    output = capsys.readouterr()
    assert ended.value.code == 1
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("error: int8 engines are refused, and nothing is written: J ")
    assert "(limit 0.3), mask IoU 0." in output.err
    assert "propagation 1 of 1 convolutions" in output.err
    assert sorted(tmp_path.iterdir()) == before


def test_quantize_refuses_what_it_cannot_use(
    engines: Path, davis_root: Path, tmp_path: Path
) -> None:
    options = QuantizationOptions(davis_root)
    with pytest.raises(InputError, match="is the engine directory itself"):
        quantize_directory(engines, engines, options)
    with pytest.raises(InputError, match="has no role 'features'"):
        quantize_directory(engines, tmp_path / "out", replace(options, roles=("features",)))
    with pytest.raises(InputError, match="'flow' cannot be quantised"):
        QuantizationOptions(davis_root, roles=("flow",))
    with pytest.raises(InputError, match="of at least 3, got 2"):
        QuantizationOptions(davis_root, frames=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.pth"], "int8 is made from one engine directory"),
        (["engines"], "give a DAVIS folder with --davis-root"),
    ],
)
def test_command_without_directory_or_split_names_them(
    given: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pth").touch()
    Path("engines").mkdir()
    Path("engines/manifest.json").touch()
    monkeypatch.setattr(sys, "argv", ["mpn-export", *given, "--precision", "int8"])
    with pytest.raises(SystemExit) as ended:
        main_export()
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_int8_engines_are_refused_on_gpu_backends(
    engines: Path, davis_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = QuantizationOptions(davis_root, roles=("propagation",))
    manifest = quantize_directory(engines, tmp_path / "int8", options).manifest
    manifest.check_is_float("cuda", ("osvos",))
    with pytest.raises(BackendError, match="propagation engine is int8, which backends cpu and"):
        manifest.check_is_float("cuda")
    with pytest.raises(BackendError, match="starts from float32"):
        quantize_directory(tmp_path / "int8", tmp_path / "again", options)


def test_greedy_keeps_sensitive_layers_in_float(tmp_path: Path) -> None:
    """One of the hidden channels is a thousand times larger than the others."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(8, 4, 1, 1)).astype(np.float16)
    first[0] *= 1000
    second = rng.normal(size=(8, 8, 1, 1)).astype(np.float16)
    second[:, 0] /= 1000
    third, fourth = np.ones((1, 8, 1, 1), np.float16), np.ones((1, 1, 1, 1), np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "a"], ["hidden"], "wide"),
        helper.make_node("Conv", ["hidden", "b"], ["even"], "after_wide"),
        helper.make_node("Conv", ["even", "c"], ["narrow"], "narrow"),
        helper.make_node("Conv", ["narrow", "d"], ["half_y"], "last"),
        helper.make_node("Cast", ["half_y"], ["y"], to=TensorProto.FLOAT),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])],
            [
                numpy_helper.from_array(values, name)
                for name, values in zip("abcd", (first, second, third, fourth), strict=True)
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    assert [node.op_type for node in float32_graph(path).graph.node] == ["Conv"] * 4
    inputs = [{"x": rng.random((1, 4, 8, 8), dtype=np.float32)} for _ in range(8)]
    quantizer = GraphQuantizer(path, inputs, tmp_path)
    every = quantizer.quantize(float("inf"))
    fewer = quantizer.quantize(every.relative_error / 2)
    assert (every.operators, every.float_layers) == (4, ())
    assert set(fewer.float_layers) == {"wide", "after_wide"}
    assert fewer.relative_error < every.relative_error / 2
    assert quantized_convolutions(fewer.model) == fewer.operators == 2


@pytest.fixture
def grouped(tmp_path: Path) -> GraphQuantizer:
    """Two convolutions with biases, one in groups; their inputs are positive."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(8, 4, 3, 3)).astype(np.float32)
    second = rng.normal(size=(6, 4, 3, 3)).astype(np.float32)
    biases = np.ones(8, np.float32), np.zeros(6, np.float32)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["x", "a", "ab"], ["sums"], "full"),
                helper.make_node("Relu", ["sums"], ["hidden"], "relu"),
                helper.make_node("Conv", ["hidden", "b", "bb"], ["y"], "grouped", group=2),
            ],
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 12, 12])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 8, 8])],
            [
                numpy_helper.from_array(values, name)
                for name, values in zip(
                    ("a", "b", "ab", "bb"), (first, second, *biases), strict=True
                )
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "tiny.onnx")
    inputs = [{"x": rng.random((1, 4, 12, 12), dtype=np.float32)} for _ in range(8)]
    return GraphQuantizer(tmp_path / "tiny.onnx", inputs, tmp_path)


def int8_weights(model: onnx.ModelProto) -> list[np.ndarray]:
    tensors = model.graph.initializer
    return [numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.INT8 and t.dims]


def test_sums_of_two_products_fit_in_16_bits(grouped: GraphQuantizer) -> None:
    """Processors without VNNI add two products of uint8 and int8 in int16."""
    for model in (
        grouped.quantize(float("inf")).model,
        *(
            onnx.load(shipped_engine_dir("lite-int8") / f"{r}.onnx")
            for r in ("propagation", "features")
        ),
    ):
        largest = max(np.abs(weights.astype(int)).max() for weights in int8_weights(model))
        assert largest > 32  # control: they are used
        assert 255 * largest * 2 <= np.iinfo(np.int16).max


def test_corrected_biases_keep_the_mean_of_each_channel(
    grouped: GraphQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the means are off without the correction."""

    def largest_shift() -> float:
        session = _session(grouped.quantize(float("inf")).model)
        shifts = [
            _run(session, given) - _run(_session(grouped.float_model), given)
            for given in grouped.inputs
        ]
        return float(np.abs(np.mean(shifts, axis=(0, 1, 3, 4))).max())

    corrected = largest_shift()
    monkeypatch.setattr(GraphQuantizer, "_correct_biases", lambda self, model: None)
    assert corrected < largest_shift() / 3


def test_sample_keeps_each_run_equally_often() -> None:
    counts = np.zeros(40)
    for seed in range(300):
        sample = InputSample(4)
        sample._random.seed(seed)
        for run in range(40):
            sample.add({"x": np.float32([run])})
        assert len(sample.inputs) == 4
        counts[[int(one["x"][0]) for one in sample.inputs]] += 1
    assert counts.sum() == 1200
    assert counts.min() > 10  # 30 each
    assert counts.max() < 55


def test_comparison_of_masks_measures_j_and_iou() -> None:
    def masks(columns: int, j: float) -> SequenceMasks:
        import zlib

        labels = np.zeros((2, 4, 10), np.uint8)
        labels[:, :, :columns] = 1
        return SequenceMasks("s", labels.shape, zlib.compress(labels.tobytes()), (j,))

    same = compared([masks(5, 0.9)], [masks(5, 0.898)])
    assert same.mask_iou == 1
    assert same.j_drop_points == pytest.approx(0.2)
    assert same.passes
    assert not compared([masks(5, 0.9)], [masks(5, 0.896)]).passes
    other = compared([masks(5, 0.9)], [masks(4, 0.9)])
    assert other.mask_iou == pytest.approx(0.8)
    assert not other.passes
    with pytest.raises(ExportError, match="no sequence has an object"):
        compared([masks(0, 0.9)], [masks(0, 0.9)])


def test_manifest_quantized_and_precision_must_agree(
    engines: Path, davis_root: Path, tmp_path: Path
) -> None:
    entry = load_manifest(engines).roles["propagation"]
    with pytest.raises(Exception, match="must be given if precision is int8"):
        replace(entry, precision="int8")
    assert "quantized" not in entry.as_json()
    manifest = load_manifest(engines)
    save_manifest(engines, manifest)
    assert load_manifest(engines) == manifest

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks.report.schema import check_result
from benchmarks.torch_baseline import compare as compare_torch
from benchmarks.torch_baseline.compare import Job, prepare_engines
from benchmarks.torch_baseline.networks import (
    correlation_by_slices,
    gflop,
    propagation_from_graph,
    use_public_forms,
)
from benchmarks.torch_baseline.pipeline import EagerPipeline, warp_by_grid_sample
from benchmarks.torch_baseline.sides import (
    Agreement,
    ReplacedFlow,
    SideFrame,
    Times,
    ratios,
)
from mpn import Pipeline, PipelineOptions
from mpn.engines.open import EngineSet, default_engine_dir, open_engines
from mpn.engines.spec import propagation_spec
from mpn.errors import CheckpointError, InputError
from mpn.export.bundle import export_bundle
from mpn.export.options import ExportOptions
from mpn.networks.checkpoint import save_checkpoint
from mpn.networks.flownet2 import FlowNet2, FlowNet2Config
from mpn.networks.flownet2_members import correlation
from mpn.networks.propagation import PropagationConfig, PropagationNet
from mpn.runtime.host.flow import DisFlow, flow_px
from mpn.runtime.host.ops import warp_bilinear
from mpn.synthetic import render_clip
from mpn.synthetic.clip import SyntheticFrame
from tests.builders.engine_dirs import make_engine_dir
from tests.networks.seeded import DEEPLAB_GAIN, FLOWNET2_GAIN, seeded
from tests.tolerances import CORRELATION_ABSOLUTE, EAGER_PROB, GRID_SAMPLE_WARP, PARITY_RELATIVE

SIZE_HW = (96, 160)
PAPER_STAGES: dict[str, Any] = {
    "flow_check_px": 0.0,
    "colour_weight": 0.0,
    "flip_tta": False,
    "osvos.mode": "off",
}
STAGES_OF_PAPER = {
    "input", "flow", "warp", "osvos", "crop", "propagation", "paste", "merge", "crf", "output",
}  # fmt: skip
OUR_STAGES = STAGES_OF_PAPER - {"input"}
"""The thread that estimates the flow also resizes the frame."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, which is faster for tiny layers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def own_network() -> PropagationNet:
    """Make a network that returns its input probability, slightly changed."""
    config = PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1, prior_skip=True)
    network = seeded(PropagationNet(config), DEEPLAB_GAIN)
    with torch.no_grad():
        network.get_parameter("decoder.last_conv.8.weight").mul_(0.3)
        network.get_parameter("decoder.last_conv.8.bias").zero_()
        network.get_parameter("prior_gain").fill_(1.8)
    return network


@pytest.fixture(scope="module")
def own_dir(own_network: PropagationNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    save_checkpoint(folder / "own.pth", {"propagation": own_network}, {"licence": "CC0-1.0"})
    options = ExportOptions(roi_size=65, verify=False, finetune=False)
    export_bundle([folder / "own.pth"], folder / "engines", options)
    return folder / "engines"


@pytest.fixture(scope="module")
def own(own_dir: Path) -> Iterator[EngineSet]:
    with open_engines(own_dir, backend="cpu", threads=1) as engines:
        yield engines


@pytest.fixture(scope="module")
def clip() -> list[SyntheticFrame]:
    return list(render_clip(frames=4, size_hw=SIZE_HW))


@pytest.fixture(scope="module")
def tiny_job() -> Job:
    return Job(
        networks="tiny", objects=(1, 2), frames=2, size_hw=SIZE_HW, roi_size=65, threads=1,
        channels_last=True, int8=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny_dir(tiny_job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    return prepare_engines(tiny_job, folder / "tiny", folder)[0]


@pytest.fixture(scope="module")
def tiny(tiny_job: Job, tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compare_torch.compare(tiny_job, *prepare_engines(tiny_job, tiny_dir, tiny_dir))


def features(seed: int) -> torch.Tensor:
    return torch.randn((1, 8, 6, 10), generator=torch.Generator().manual_seed(seed))


def test_sliced_correlation_equals_correlation() -> None:
    one, other = features(0), features(1)
    sliced = correlation_by_slices(one, other)
    assert sliced.shape == (1, 441, 6, 10)
    torch.testing.assert_close(sliced, correlation(one, other), rtol=0, atol=CORRELATION_ABSOLUTE)
    swapped = correlation_by_slices(other, one)
    assert (swapped - sliced).abs().max() > 100 * CORRELATION_ABSOLUTE


@torch.no_grad()
def test_public_forms_return_same_outputs() -> None:
    flow = seeded(FlowNet2(FlowNet2Config("FlowNet2CS", width=0.125)), FLOWNET2_GAIN)
    deeplab = seeded(
        PropagationNet(PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1)),
        DEEPLAB_GAIN,
    )
    frames = torch.rand((2, 1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 255
    crop = torch.rand((1, 4, 65, 65), generator=torch.Generator().manual_seed(1))
    before = flow(*frames), deeplab(crop)
    use_public_forms({"flow": flow, "propagation": deeplab})
    assert any(getattr(layer, "inplace", False) for layer in deeplab.modules())
    for old, new in zip(before, (flow(*frames), deeplab(crop)), strict=True):
        assert (new - old).abs().max() <= PARITY_RELATIVE * old.abs().max()


@torch.no_grad()
def test_propagation_from_graph_matches_engine(
    own: EngineSet, own_dir: Path, own_network: PropagationNet
) -> None:
    size = own.manifest.roi_size
    crop = np.random.default_rng(0).random((1, 4, size, size), np.float32)
    engine = own.propagation.run({"rgb_prob": crop})["prob"]

    def difference(network: PropagationNet) -> float:
        prob = torch.softmax(network(torch.from_numpy(crop)), dim=1)[:, 1:]
        return float(np.abs(prob.numpy() - engine).max())

    assert difference(own_network) <= EAGER_PROB
    wrong = propagation_from_graph(own_dir / "propagation.onnx")
    assert difference(wrong) <= EAGER_PROB
    wrong.get_parameter("prior_gain").zero_()
    assert difference(wrong) > 10 * EAGER_PROB


def test_shipped_propagation_is_read_but_not_compared(tiny_job: Job, tmp_path: Path) -> None:
    network = propagation_from_graph(default_engine_dir() / "propagation.onnx")
    assert (network.config.backbone, network.config.in_channels) == ("efficientnet-lite0", 5)
    assert network.config.head_width == 0.25
    job = replace(tiny_job, networks="own", int8=False)
    with pytest.raises(InputError, match="has 5 input channels"):
        prepare_engines(job, default_engine_dir(), tmp_path)
    with pytest.raises(InputError, match="needs --engine-dir"):
        prepare_engines(job, None, tmp_path)


def test_propagation_from_graph_other_network_raises(tmp_path: Path) -> None:
    other = make_engine_dir(tmp_path / "tiny") / "propagation.onnx"
    with pytest.raises(CheckpointError, match="does not have the weights of a DeepLab"):
        propagation_from_graph(other)


def test_gflop_counts_two_operations_per_multiply_add() -> None:
    small = PropagationNet(PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1))
    smaller = PropagationNet(PropagationConfig(width=0.125, head_width=0.125, middle_blocks=2))
    spec = propagation_spec(65, 1)
    block = gflop("propagation", smaller, spec) - gflop("propagation", small, spec)
    channels = 88  # 728 / 8, to a multiple of 8
    pixels = 5 * 5
    assert block * 1e9 == pytest.approx(
        2 * 3 * pixels * (channels * channels + 9 * channels), abs=1e6
    )


def test_grid_sample_warp_equals_warp_bilinear() -> None:
    rng = np.random.default_rng(0)
    prob = rng.random((1, 20, 30), np.float32)
    still = np.zeros((2, 20, 30), np.float32)
    flow = rng.normal(0, 5, (2, 20, 30)).astype(np.float32)

    def eager_warp(by_px: np.ndarray) -> np.ndarray:
        warped = warp_by_grid_sample(torch.from_numpy(prob[0]), torch.from_numpy(by_px))
        return np.asarray(warped)

    assert np.abs(eager_warp(still) - prob[0]).max() <= GRID_SAMPLE_WARP
    assert np.abs(eager_warp(flow) - warp_bilinear(prob, flow)[0]).max() <= GRID_SAMPLE_WARP
    assert np.abs(eager_warp(flow[::-1].copy()) - warp_bilinear(prob, flow)[0]).max() > 0.1


@pytest.mark.parametrize("objects", [1, 3])
def test_eager_pipeline_matches_pipeline(
    objects: int, own: EngineSet, own_network: PropagationNet, clip: list[SyntheticFrame]
) -> None:
    labels = np.where(clip[0].labels <= objects, clip[0].labels, 0)

    def difference(ours: PipelineOptions, theirs: PipelineOptions) -> tuple[float, int]:
        dis = DisFlow(own.manifest.flow)
        pipeline = Pipeline(own, options=ours)
        eager = EagerPipeline(
            {"propagation": own_network},
            theirs,
            own.manifest.preprocessing,
            roi_size=own.manifest.roi_size,
            dis=lambda rgb, previous: flow_px(dis, rgb, previous),
        )
        pipeline.start(clip[0].rgb, labels)
        eager.start(clip[0].rgb, labels)
        for frame in clip[1:]:
            ours_now, theirs_now = pipeline.step(frame.rgb), eager.step(frame.rgb)
        differing = int((ours_now.labels != theirs_now.labels).sum())
        return float(np.abs(ours_now.probs - theirs_now.probs).max()), differing

    options = (
        PipelineOptions().with_values(PAPER_STAGES).with_defaults(own.manifest.runtime_defaults)
    )
    prob, pixels = difference(options, options)
    assert prob <= EAGER_PROB
    assert pixels <= 2
    prob, pixels = difference(options, replace(options, roi_margin_frac=0.3))
    assert prob > 10 * EAGER_PROB
    assert pixels > 2


def test_eager_pipeline_other_stages_raise(own: EngineSet) -> None:
    with pytest.raises(InputError, match="only the stages of the paper"):
        EagerPipeline({}, PipelineOptions(colour_weight=1), own.manifest.preprocessing, roi_size=65)


def test_replaced_flow_keeps_estimate(own: EngineSet, clip: list[SyntheticFrame]) -> None:
    flow = ReplacedFlow(DisFlow(own.manifest.flow))
    frames = [flow.prepare(frame.rgb) for frame in clip[:2]]
    estimate = flow.estimate(*frames)
    assert flow.estimated_px is estimate
    flow.given_px = np.full_like(estimate, 3)
    assert flow.estimate(*frames) is flow.given_px
    np.testing.assert_array_equal(flow.estimated_px, estimate)


def test_compare_result_is_in_common_format(tiny: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    compare_torch.write_result(path, "compare_torch", tiny)
    check_result(json.loads(path.read_text()))
    assert (tiny["networks"], tiny["objects"], tiny["torch_threads"]) == ("tiny", [1, 2], 1)
    assert tiny["gflop_per_run"].keys() == {"flow", "propagation", "osvos"}
    assert any("random weights" in line for line in tiny["conditions"])


def test_compare_result_has_every_stage(tiny: dict[str, Any]) -> None:
    assert [run["objects"] for run in tiny["runs"]] == [1, 2]
    for run in tiny["runs"]:
        assert run["sides"].keys() == {"ours", "ours_int8", "eager", "eager_channels_last"}
        for name, side in run["sides"].items():
            expected = OUR_STAGES if name.startswith("ours") else STAGES_OF_PAPER
            assert side["stages"].keys() == expected
            assert side["frame"]["n"] == 2
            assert 0 < side["outside_networks_share"] < 1
        for name in ("eager", "eager_channels_last"):
            assert run["ratios"][name]["stages"].keys() == OUR_STAGES
            assert run["ratios_of_ours"]["ours_int8"][name]["stages"].keys() == OUR_STAGES
            assert run["agreement"][name]["frames"] == 3
        assert run["agreement"]["ours_int8"]["prob"]["mean_difference"] > 0
    assert [entry["objects"] for entry in tiny["operations"]] == [1, 2]
    assert all(entry["max_difference"] <= GRID_SAMPLE_WARP for entry in tiny["operations"])


def test_compare_masks_agree_only_for_same_weights(tiny_job: Job, tiny_dir: Path) -> None:
    # Without CRF: on a small frame it depends on the region that it gets.
    job = replace(tiny_job, objects=(1,), crf=False, channels_last=False, int8=False)
    engine_dir, networks = prepare_engines(job, tiny_dir, tiny_dir)
    same = compare_torch.compare(job, engine_dir, networks)
    assert same["do_masks_agree"]
    agreement = same["runs"][0]["agreement"]["eager"]
    assert 0.01 < agreement["foreground_share"] < 0.5
    flow = agreement["flow"]
    assert flow["max_difference_px"] <= PARITY_RELATIVE * flow["longest_px"]
    bias = networks["propagation"].get_parameter("decoder.last_conv.8.bias")
    with torch.no_grad():
        bias += torch.tensor([0.0, 1.0])
    assert not compare_torch.compare(job, engine_dir, networks)["do_masks_agree"]


def test_compare_command_writes_result(
    tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    given = f"--networks tiny --objects 1 --frames 1 --frame-size {SIZE_HW[1]}x{SIZE_HW[0]} "
    given += f"--roi-size 65 --threads 1 --no-crf --engine-dir {tiny_dir} -o {out}"
    assert compare_torch.main(given.split()) == 0
    output = capsys.readouterr().out
    assert "K = 1, ours against eager" in output
    assert str(out) in output
    assert "crf" not in json.loads(out.read_text())["runs"][0]["ratios"]["eager"]["stages"]


@pytest.mark.parametrize("given", ["--objects 4", "--frames 0", "--frame-size big"])
def test_compare_command_invalid_numbers_exit_1(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_torch.main(given.split()) == 1
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def side_frame(labels: np.ndarray, seconds: float) -> SideFrame:
    prob = (labels > 0).astype(np.float32)[None]
    return SideFrame(labels, prob, None, {"flow": seconds / 2, "warp": seconds / 2}, seconds)


def test_ratios_divide_other_by_ours() -> None:
    ours, other = Times(), Times()
    labels = np.zeros((4, 4), np.uint8)
    for seconds in (1.0, 2.0, 4.0):
        ours.add(side_frame(labels, seconds))
        other.add(side_frame(labels, 3 * seconds))
    found = ratios(ours, other)
    assert found["frame"] == {"of_minima": 3.0, "of_medians": 3.0}
    assert found["stages"]["flow"] == {"of_minima": 3.0, "of_medians": 3.0}
    assert ours.as_json()["outside_networks_share"] == 0.5


def test_agreement_has_worst_frame() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:, :5] = 1
    shifted = cv2.copyMakeBorder(labels[:, :-1], 0, 0, 1, 0, cv2.BORDER_REPLICATE)
    agreement = Agreement([1])
    agreement.add(side_frame(labels, 1), side_frame(labels, 1))
    agreement.add(side_frame(labels, 1), side_frame(shifted, 1))
    assert agreement.iou_min == pytest.approx(5 / 6)
    figures = agreement.as_json()
    assert figures["mask_iou_of_frames"] == [[1.0], [pytest.approx(5 / 6, abs=1e-6)]]
    assert figures["prob"]["max_difference"] == 1.0
    assert "flow" not in figures

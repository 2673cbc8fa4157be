"""Frames with true flow: synthetic pairs, published layouts, crops, loss."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mpn.errors import InputError, TrainingError
from mpn.runtime.host.ops import warp_bilinear
from mpn.training.flow.crop import FlowCropOptions, crop_pair, recoloured
from mpn.training.flow.options import FlowTrainingOptions
from mpn.training.flow.pairs import FlowSamples, joined, load_flow_pairs, read_flo
from mpn.training.flow.synthetic import FlowSample, SyntheticFlowOptions, SyntheticPairs
from mpn.training.losses import PUBLISHED_WEIGHTS, mean_epe_px, multiscale_epe
from mpn.training.propagation.clips import ClipSources
from tests.conftest import shared_path
from tests.tolerances import LOSS_RELATIVE, SYNTHETIC_FLOW_LEVELS

SIZE_HW = (64, 128)
CALM = FlowCropOptions(recolour=0.0, noise=0.0)


def write_flo(path: Path, flow_px: np.ndarray) -> None:
    height, width = flow_px.shape[1:]
    with path.open("wb") as file:
        np.array([202021.25], "<f4").tofile(file)
        np.array([width, height], "<i4").tofile(file)
        flow_px.transpose(1, 2, 0).astype("<f4").tofile(file)


def _levels_off(sample: FlowSample, flow_px: np.ndarray) -> float:
    """Compute the median difference of frames along a flow, in levels."""
    warped = warp_bilinear(sample.frames[1], flow_px.astype(np.float32))
    return float(np.median(np.abs(warped - sample.frames[0])[:, 8:-8, 8:-8]))


def test_synthetic_flow_takes_frame_1_to_frame_0(material: ClipSources) -> None:
    pairs = SyntheticPairs(material.stills, SIZE_HW, SyntheticFlowOptions(shift_px=6.0), 0)
    errors, controls = [], []
    for number in range(6):
        sample = pairs.pair(number)
        assert sample.frames.shape == (2, 3, *SIZE_HW)
        assert sample.flow_px.shape == (2, *SIZE_HW)
        assert sample.valid.all()
        errors.append(_levels_off(sample, sample.flow_px))
        controls.append(_levels_off(sample, -sample.flow_px))
    assert max(errors) < SYNTHETIC_FLOW_LEVELS
    # control: the flow the other way round does not explain the frames
    assert np.median(controls) > 5 * SYNTHETIC_FLOW_LEVELS


def test_synthetic_objects_move_and_hide_background(material: ClipSources) -> None:
    options = SyntheticFlowOptions(still_share=1.0, objects_max=1)
    pairs = SyntheticPairs(material.stills, SIZE_HW, options, 1)
    shares = []
    for number in range(8):
        sample = pairs.pair(number)
        moving = np.abs(sample.flow_px).sum(axis=0) > 0
        shares.append(moving.mean())
        warped = warp_bilinear(sample.frames[1], sample.flow_px)
        # Static pixels are equal in both frames, unless the object covers them.
        still = np.abs(warped - sample.frames[0]).mean(axis=0)[~moving]
        if len(still):
            assert np.quantile(still, 0.2) < 1
    assert 0.01 < np.mean(shares) < 0.8


def test_a_pair_is_a_function_of_seed_and_number(material: ClipSources) -> None:
    first, again, other = (
        SyntheticPairs(material.stills, SIZE_HW, SyntheticFlowOptions(), seed).pair(3, 4)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.flow_px, again.flow_px)
    assert not np.array_equal(first.flow_px, other.flow_px)
    with pytest.raises(TrainingError, match="add --stills"):
        SyntheticPairs((), SIZE_HW, SyntheticFlowOptions(), 0)


def test_flo_files_are_read_and_damage_is_named(tmp_path: Path) -> None:
    flow = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    flow[:, 1, 2] = 1.7e9
    path = tmp_path / "a.flo"
    write_flo(path, flow)
    read = read_flo(path)
    assert np.isnan(read[:, 1, 2]).all()
    known = np.isfinite(read)
    np.testing.assert_array_equal(read[known], flow[known])
    assert known.sum() == 28
    content = path.read_bytes()
    for damaged, message in (
        (content[:-4], r"has 128 bytes, but 5x3 needs 132"),
        (b"x" * 40, r"no \.flo file"),
        (content[:4] + b"\xff" * 8 + content[12:], "has a size of -1x-1"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match=message):
            read_flo(path)
    with pytest.raises(TrainingError, match=r"none\.flo cannot be read"):
        read_flo(tmp_path / "none.flo")


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))


def _chairs(root: Path, count: int = 4) -> None:
    for number in range(1, count + 1):
        _picture(root / f"data/{number:05d}_img1.ppm")
        _picture(root / f"data/{number:05d}_img2.ppm")
        write_flo(root / f"data/{number:05d}_flow.flo", np.zeros((2, 8, 8)))


def test_flying_chairs_are_read_as_published(tmp_path: Path) -> None:
    _chairs(tmp_path)
    pairs = load_flow_pairs(tmp_path, 1)
    assert [p.flow_path.name for p in pairs.train] == [f"0000{n}_flow.flo" for n in (1, 2, 3)]
    assert [p.flow_path.name for p in pairs.held_out] == ["00004_flow.flo"]
    assert pairs.train[0].frames()[1].shape == (8, 8, 3)
    (tmp_path / "FlyingChairs_train_val.txt").write_text("2\n1\n1\n2\n")
    pairs = load_flow_pairs(tmp_path, 1)
    assert [p.flow_path.name[4] for p in pairs.held_out] == ["1", "4"]
    (tmp_path / "FlyingChairs_train_val.txt").write_text("1\n")
    with pytest.raises(TrainingError, match="has 1 lines of 1 or 2, but there are 4 pairs"):
        load_flow_pairs(tmp_path, 1)


def test_sintel_is_read_as_published_and_held_out_by_scene(tmp_path: Path) -> None:
    for scene in ("alley_1", "bamboo_2"):
        for number in range(1, 4):
            for kind in ("clean", "final"):
                _picture(tmp_path / f"training/{kind}/{scene}/frame_{number:04d}.png")
            if number < 3:
                flow = tmp_path / f"training/flow/{scene}/frame_{number:04d}.flo"
                flow.parent.mkdir(parents=True, exist_ok=True)
                write_flo(flow, np.zeros((2, 8, 8)))
    pairs = load_flow_pairs(tmp_path, 1)
    assert len(pairs.train) == len(pairs.held_out) == 4
    assert {p.flow_path.parent.name for p in pairs.held_out} == {"bamboo_2"}
    assert pairs.train[0].image1_path.name == "frame_0002.png"
    with pytest.raises(TrainingError, match="no scene is left"):
        load_flow_pairs(tmp_path, 99)
    (tmp_path / "training/clean/alley_1/frame_0002.png").unlink()
    with pytest.raises(TrainingError, match=r"lacks its frame frame_0002\.png"):
        load_flow_pairs(tmp_path, 1)


def test_a_folder_without_true_flow_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no frames with true flow: expected") as error:
        load_flow_pairs(tmp_path, 1)
    assert "\n" not in str(error.value)
    _chairs(tmp_path, 2)
    with pytest.raises(TrainingError, match="none is left to train on"):
        load_flow_pairs(tmp_path, 2)
    (tmp_path / "data/00001_img2.ppm").unlink()
    with pytest.raises(TrainingError, match=r"lacks its frame 00001_img2\.ppm"):
        load_flow_pairs(tmp_path, 0)


def test_true_pairs_of_the_shared_data_explain_their_frames() -> None:
    pairs = load_flow_pairs(shared_path("data", "flow_gt", "flyingchairs"), 1)
    assert len(pairs.train) == 4
    frames, flow = pairs.train[0].frames(), pairs.train[0].flow_px()
    rng = np.random.default_rng(0)
    off, control = [], []
    for _ in range(4):
        crop = crop_pair(frames, flow, (128, 192), CALM, rng)
        off.append(_levels_off(crop, crop.flow_px))
        control.append(_levels_off(crop, -crop.flow_px))
    assert np.median(off) < SYNTHETIC_FLOW_LEVELS
    assert np.median(control) > 2 * np.median(off)


def test_a_crop_turns_and_scales_its_flow_with_its_frames() -> None:
    """In every crop of a moved smooth image the flow maps frame 0 to frame 1."""
    ys, xs = np.mgrid[:120, :180].astype(np.float32)

    def picture(shift_x: float, shift_y: float) -> np.ndarray:
        waves = np.sin((xs - shift_x) / 7) + np.cos((ys - shift_y) / 5)
        return np.repeat(np.rint(127 + 50 * waves)[..., None], 3, axis=2).astype(np.uint8)

    frames = (picture(0, 0), picture(4, -3))
    flow = np.stack([np.full_like(xs, 4), np.full_like(xs, -3)])
    options = FlowCropOptions(rotation_deg=45, recolour=0, noise=0)
    for seed in range(8):
        crop = crop_pair(frames, flow, SIZE_HW, options, np.random.default_rng(seed))
        assert _levels_off(crop, crop.flow_px) < 4
        lengths = np.hypot(*crop.flow_px)[crop.valid]
        assert np.ptp(lengths) < 0.01  # a pixel on the edge of the known is 0.1 % short
        assert 5 * 0.85 < lengths.mean() < 5 * 1.65
    # control: the flow before the turn does not explain the crop
    crop = crop_pair(frames, flow, SIZE_HW, options, np.random.default_rng(1))
    assert _levels_off(crop, np.full_like(crop.flow_px, 4)) > 4


def test_unknown_flow_is_not_valid_in_a_crop() -> None:
    flow = np.zeros((2, 120, 180), np.float32)
    flow[:, :, :90] = np.nan
    grey = np.zeros((120, 180, 3), np.uint8)
    crop = crop_pair((grey, grey), flow, SIZE_HW, CALM, np.random.default_rng(0))
    assert np.isfinite(crop.flow_px).all()
    assert 0 < crop.valid.mean() < 1


def test_colours_and_noise_leave_flow_alone(material: ClipSources) -> None:
    sample = SyntheticPairs(material.stills, SIZE_HW, SyntheticFlowOptions(), 0).pair(0)
    changed = recoloured(sample, FlowCropOptions(recolour=1, noise=1), np.random.default_rng(0))
    assert changed.flow_px is sample.flow_px
    assert np.abs(changed.frames - sample.frames).mean() > 1
    assert 0 <= changed.frames.min() <= changed.frames.max() <= 255


def test_flow_samples_are_pure_and_mix_both_kinds(material: ClipSources, tmp_path: Path) -> None:
    _chairs(tmp_path)
    pairs = load_flow_pairs(tmp_path, 1).train
    options = FlowTrainingOptions(size_hw=(64, 64), true_share=0.5)
    first, again = (FlowSamples(material.stills, pairs, options) for _ in range(2))
    kinds = set()
    for index in range(12):
        a, b = first.sample(5, index), again.sample(5, index)
        np.testing.assert_array_equal(a.frames, b.frames)
        kinds.add(bool(np.abs(a.flow_px).any()))  # the chairs of this test do not move
    assert kinds == {True, False}
    frames, flow_px, valid = joined([first.sample(0, 0), first.sample(0, 1)])
    assert frames.shape == (2, 2, 3, 64, 64)
    assert flow_px.shape == (2, 2, 64, 64)
    assert valid.dtype == torch.bool
    with pytest.raises(TrainingError, match="give at least one folder"):
        FlowSamples((), (), options)


def test_multiscale_epe_is_published_loss_per_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 2, 64, 128, generator=generator) * 10
    valid = torch.ones(2, 64, 128, dtype=torch.bool)
    sizes = [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32)]
    flows = [torch.randn(2, 2, *size, generator=generator) for size in sizes]
    expected = 0.0
    for flow, weight, (h, w) in zip(flows, PUBLISHED_WEIGHTS, sizes, strict=True):
        cell = target.reshape(2, 2, h, 64 // h, w, 128 // w).mean(dim=(3, 5))
        epe = ((flow - cell) / 20).square().sum(dim=1).sqrt()
        expected += weight * float(epe.sum()) / 2  # summed over pixels, mean over the batch
    got = float(multiscale_epe(flows, target, valid, PUBLISHED_WEIGHTS)) * 16 * 32
    assert got == pytest.approx(expected, rel=10 * LOSS_RELATIVE)
    # control: weights in the other order are another loss
    other = float(multiscale_epe(flows, target, valid, PUBLISHED_WEIGHTS[::-1])) * 16 * 32
    assert other != pytest.approx(expected, rel=1e-2)
    with pytest.raises(InputError, match="got 2 for 5 levels"):
        multiscale_epe(flows, target, valid, (1.0, 2.0))


def test_invalid_pixels_do_not_count() -> None:
    target = torch.zeros(1, 2, 64, 64)
    target[..., :32] = 100.0
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    flows = [torch.zeros(1, 2, 16, 16)]
    assert multiscale_epe(flows, target, valid, (1.0,)) > 0
    assert mean_epe_px(torch.zeros_like(target), target, valid) > 50
    valid[..., :32] = False
    assert multiscale_epe(flows, target, valid, (1.0,)) == 0
    assert mean_epe_px(torch.zeros_like(target), target, valid) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_hw": (100, 64)}, "size_hw must be two multiples of 64, got 100, 64"),
        ({"steps_by_member": (1, 2)}, "steps_by_member needs 1 numbers for FlowNet2S"),
        ({"steps_by_member": (0,)}, "not all 0"),
        ({"true_share": 2.0}, r"true_share must be a finite number of 0\.\.1"),
        ({"ema_decay": 1.0}, "ema_decay must be a finite number of at least 0 and below 1"),
        ({"workers": 0}, "workers must be a whole number of at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        FlowTrainingOptions(**changes)  # type: ignore[arg-type]

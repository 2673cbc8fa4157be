from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mpn.engines.directory.manifest import OsvosPreprocessing
from mpn.runtime.host.preprocess import osvos_input
from mpn.training.osvos.samples import (
    CropOptions,
    CropSource,
    MergedFrames,
    StillImages,
    network_input,
    random_crop,
)
from mpn.training.propagation.clips import ClipSources

STILL = CropOptions(
    size_px=64, zoom_min=1.0, zoom_max=1.0, aspect=1.0, rotation_deg=0.0, on_object=0.0, recolour=0
)


def _scene() -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright square, the object, on a dark background."""
    mask = np.zeros((64, 64), bool)
    mask[20:44, 8:30] = True
    rgb = np.where(mask[..., None], (200, 150, 100), (20, 30, 40)).astype(np.uint8)
    return rgb, mask


def test_random_crop_of_whole_image_is_image_or_flip() -> None:
    rgb, mask = _scene()
    seen = set()
    for seed in range(8):
        crop, crop_mask = random_crop(rgb, mask, STILL, np.random.default_rng(seed))
        straight = np.array_equal(crop_mask, mask)
        expected = rgb if straight else rgb[:, ::-1]
        np.testing.assert_allclose(crop[:, 2:-2, 2:-2], expected.transpose(2, 0, 1)[:, 2:-2, 2:-2])
        seen.add(straight)
    assert seen == {True, False}


def test_mask_and_colours_move_together() -> None:
    rgb, mask = _scene()
    options = replace(CropOptions(), size_px=96, recolour=0.0, on_object=1.0)
    areas = []
    for seed in range(20):
        crop, crop_mask = random_crop(rgb, mask, options, np.random.default_rng(seed))
        bright = crop[0] > 110
        assert (bright != crop_mask).mean() < 0.03
        areas.append(crop_mask.mean())
    assert min(areas) > 0.02
    assert max(areas) > 2 * min(areas)


def test_colours_change_if_requested() -> None:
    rgb, mask = _scene()
    recoloured = replace(STILL, recolour=1.0)
    a, _ = random_crop(rgb, mask, recoloured, np.random.default_rng(0))
    b, _ = random_crop(rgb, mask, STILL, np.random.default_rng(0))
    assert np.abs(a - b).max() > 5
    assert a.min() >= 0
    assert a.max() <= 255


def test_inputs_are_those_of_the_runtime() -> None:
    rgb, _ = _scene()
    preprocessing = OsvosPreprocessing()
    expected = osvos_input(
        rgb, (64, 64), channel_order=preprocessing.channel_order, mean=preprocessing.mean
    )
    planes = rgb.transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(network_input([planes]).numpy(), expected)
    np.testing.assert_array_equal(network_input([planes], 64.0).numpy(), expected / 64)
    assert not np.array_equal(network_input([planes[::-1].copy()]).numpy(), expected)


def test_a_batch_is_a_function_of_its_number(material: ClipSources) -> None:
    def source(seed: int) -> CropSource:
        images = [(StillImages(material.stills), 0.5), (MergedFrames(material.sequences), 0.5)]
        return CropSource(images, CropOptions(size_px=64), batch=3, seed=seed)

    images, masks = source(0).batch(5)
    assert images.shape == (3, 3, 64, 64)
    assert masks.shape == (3, 1, 64, 64)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    again, _ = source(0).batch(5)
    assert torch.equal(images, again)
    for other, _ in (source(0).batch(6), source(1).batch(5)):
        assert not torch.equal(images, other)


def test_objects_are_merged_and_frames_excluded(material: ClipSources) -> None:
    frames = MergedFrames(material.sequences)
    assert len(frames) == sum(len(s) for s in material.sequences)
    assert len(MergedFrames(material.sequences, every=4)) == 2 * len(material.sequences)
    rgb, mask = frames[9]
    np.testing.assert_array_equal(mask, material.sequences[1].labels(1) > 0)
    np.testing.assert_array_equal(rgb, material.sequences[1].rgb(1))

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpn.errors import InputError, MaskError
from mpn.runtime.finetune.augment.osvos import CropRange, OsvosSampler
from mpn.types import UInt8Array
from tests.builders.clips import Square, squares_clip

CLIP = squares_clip(
    [Square(1, (40, 30), 40, (0, 0)), Square(2, (100, 40), 30, (0, 0), channel=2)],
    size_hw=(96, 160),
    frames=1,
)
EXACT = CropRange(zoom=(1.0, 1.0), aspect=1.0, rotation_deg=0.0, on_object_share=0.0)


def sampler(
    crop_range: CropRange | None = None,
    *,
    rgb: UInt8Array = CLIP.frames[0],
    labels: UInt8Array = CLIP.labels[0],
    channel_order: str = "rgb",
    mean: tuple[float, float, float] = (0, 0, 0),
    size_px: int = 96,
    batch: int = 4,
    seed: int = 0,
    object_id: int = 1,
) -> OsvosSampler:
    return OsvosSampler(
        rgb,
        labels,
        object_id,
        channel_order=channel_order,
        mean=mean,
        size_px=size_px,
        batch=batch,
        seed=[seed],
        crop_range=crop_range,
    )


def test_osvos_crop_at_scale_one_is_window_or_its_flip() -> None:
    images, targets = sampler(EXACT, batch=12).batch()
    assert (images.shape, targets.shape) == ((12, 3, 96, 96), (12, 1, 96, 96))
    frame = CLIP.frames[0].astype(np.float32)
    mask = CLIP.labels[0] == 1
    found = set()
    for image, target in zip(images, targets, strict=True):
        candidates = {
            (left, step): (
                frame[:, left : left + 96][:, ::step],
                mask[:, left : left + 96][:, ::step],
            )
            for left in range(65)
            for step in (1, -1)
        }
        place, (window, inside) = min(
            candidates.items(),
            key=lambda item: np.abs(item[1][0] - image.transpose(1, 2, 0)).mean(),
        )
        # Between two pixels there is half a pixel's blur.
        assert np.abs(window - image.transpose(1, 2, 0)).mean() < 6
        assert np.mean(inside != (target[0] > 0.5)) < 0.02
        found.add(place[1])
    assert found == {1, -1}


def test_image_and_target_get_the_same_transform() -> None:
    images, targets = sampler(batch=32).batch()
    red = (images[:, 0] - images[:, 1] > 60) & (images[:, 0] - images[:, 2] > 60)
    disagree = red ^ (targets[:, 0] > 0.5)
    assert red.sum() > 0.02 * red.size
    assert disagree.sum() < 0.12 * red.sum()  # outlines: a pixel around each object
    shifted = np.roll(red, 4, axis=2) ^ (targets[:, 0] > 0.5)
    assert shifted.sum() > 2 * disagree.sum()  # the control


def test_another_object_is_background() -> None:
    images, targets = sampler(batch=32).batch()
    blue = (images[:, 2] - images[:, 0] > 60) & (images[:, 2] - images[:, 1] > 60)
    assert blue.any()
    assert not (targets[:, 0][blue] > 0.5).any()
    assert set(np.unique(targets)) == {0.0, 1.0}


def test_channels_and_mean_are_the_networks() -> None:
    mean = (10.0, 20.0, 30.0)
    rgb, _ = sampler(seed=3).batch()
    bgr, _ = sampler(seed=3, channel_order="bgr", mean=mean).batch()
    np.testing.assert_array_equal(bgr, rgb[:, ::-1] - np.array(mean, np.float32)[:, None, None])


def test_crops_zoom_in_and_out() -> None:
    areas = {}
    for zoom in (0.9, 2.2):
        wide = replace(EXACT, zoom=(zoom, zoom), on_object_share=1.0)
        _, targets = sampler(wide, batch=24).batch()
        areas[zoom] = float(np.percentile(targets.mean(axis=(1, 2, 3)), 90)) * 96 * 96
    assert areas[0.9] == pytest.approx((0.9 * 40) ** 2, rel=0.05)
    assert areas[2.2] > 2 * areas[0.9]


def test_most_crops_show_the_object_if_requested() -> None:
    shares = {}
    for on_object in (0.0, 1.0):
        _, targets = sampler(
            CropRange(zoom=(2.2, 2.2), on_object_share=on_object), batch=64
        ).batch()
        shares[on_object] = np.mean(targets.any(axis=(1, 2, 3)))
    assert shares[1.0] > 0.95
    assert shares[0.0] < shares[1.0] - 0.05


def test_a_large_frame_does_not_alias() -> None:
    """A checkerboard of single pixels is grey when the crop is a quarter of its size."""
    rows, columns = np.mgrid[:384, :512]
    board = np.repeat((((rows + columns) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    labels = np.zeros((384, 512), np.uint8)
    labels[100:200, 100:200] = 1
    images, _ = sampler(EXACT, rgb=board, labels=labels).batch()
    assert images.std() < 10
    assert images.mean() == pytest.approx(127.5, abs=3)


def test_colours_change_only_if_requested() -> None:
    plain, _ = sampler(EXACT, batch=2).batch()
    lit, _ = sampler(replace(EXACT, light_share=1.0), batch=1).batch()
    assert np.abs(plain[0].mean(axis=(1, 2)) - lit[0].mean(axis=(1, 2))).max() > 2


def test_the_same_seed_gives_the_same_crops() -> None:
    first, again, other = (sampler(seed=seed).batch() for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.any(first[0] != other[0])


def test_osvos_sampler_refuses_small_object_and_size() -> None:
    with pytest.raises(MaskError, match="object 9 has 0 pixels"):
        sampler(object_id=9)
    with pytest.raises(InputError, match="the mask is"):
        sampler(labels=CLIP.labels[0][1:])

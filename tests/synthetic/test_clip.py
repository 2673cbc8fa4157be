"""Built-in clip: its guarantees to the demo and to tests with exact masks."""

import itertools
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mpn.errors import InputError, OutputError
from mpn.evaluation import load_annotation, load_davis
from mpn.synthetic import CLIP_FPS, render_clip, write_clip
from mpn.synthetic.texture import colour_ramp, fractal_noise
from tests.tolerances import CLIP_PSNR_DB, MOTION_SLACK_PX

SMALL_HW = (120, 214)
SCALE = 0.25
KOI, BALL, LEAF = 1, 2, 3
CLIP_FRAMES = 48


def labels_of_clip(objects: int, frames: int = CLIP_FRAMES) -> list[np.ndarray]:
    clip = render_clip(frames=frames, size_hw=SMALL_HW, objects=objects)
    return [frame.labels for frame in clip]


@pytest.fixture(scope="module")
def small_labels() -> list[np.ndarray]:
    return labels_of_clip(3, frames=2 * CLIP_FRAMES)


def test_rendering_twice_gives_the_same_bytes() -> None:
    first, second = (list(render_clip(frames=3, size_hw=SMALL_HW, seed=7)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_a_frame_does_not_depend_on_the_length_of_the_clip() -> None:
    short = list(render_clip(frames=2, size_hw=SMALL_HW))
    longer = list(itertools.islice(render_clip(frames=500, size_hw=SMALL_HW), 2))
    np.testing.assert_array_equal(short[1].rgb, longer[1].rgb)


def test_another_seed_changes_the_picture() -> None:
    (one,) = render_clip(frames=1, size_hw=SMALL_HW, seed=0)
    (other,) = render_clip(frames=1, size_hw=SMALL_HW, seed=1)
    assert np.abs(one.rgb.astype(int) - other.rgb).mean() > 10


def test_shapes_and_types_at_the_default_size() -> None:
    (frame,) = render_clip(frames=1)
    assert frame.rgb.shape == (480, 854, 3)
    assert frame.rgb.dtype == np.uint8
    assert frame.labels.shape == (480, 854)
    assert frame.labels.dtype == np.uint8
    assert 40 < frame.rgb.mean() < 200  # neither dark nor burnt out


def test_objects_are_large_and_separate_at_first() -> None:
    (labels,) = labels_of_clip(3, frames=1)
    (koi_alone,) = labels_of_clip(1, frames=1)
    for object_id in (KOI, BALL, LEAF):
        assert 0.04 < (labels == object_id).mean() < 0.15
    np.testing.assert_array_equal(labels == KOI, koi_alone == KOI)


def test_every_object_is_visible_in_every_frame(small_labels: list[np.ndarray]) -> None:
    for labels in small_labels:
        assert set(np.unique(labels).tolist()) == {0, KOI, BALL, LEAF}
        assert min(np.bincount(labels.ravel())[1:]) > 0.015 * labels.size


def test_the_leaf_covers_part_of_the_koi_and_sets_it_free(small_labels: list[np.ndarray]) -> None:
    visible = []
    for labels, alone in zip(small_labels, labels_of_clip(1), strict=False):
        assert not ((labels == KOI) & (alone != KOI)).any()  # covered, never moved
        assert (labels[alone == KOI] != 0).all()  # by an object, not by the floor
        visible.append((labels == KOI).sum() / (alone == KOI).sum())
    assert visible[0] == 1
    assert 0.4 < min(visible) < 0.75
    assert min(visible[-2:]) > 0.97


def test_motion_is_felt_and_bounded(small_labels: list[np.ndarray]) -> None:
    """No contour point moves farther than about 10 px of the full size in a frame."""
    alone = labels_of_clip(1)
    for object_id, clip in ((KOI, alone), (BALL, small_labels), (LEAF, small_labels)):
        moved = [
            contour_distance_px(before == object_id, after == object_id)
            for before, after in itertools.pairwise(clip[:CLIP_FRAMES])
        ]
        assert max(moved) <= 12 * SCALE + MOTION_SLACK_PX
        assert max(moved) >= 4 * SCALE


def contour_distance_px(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the largest distance of a mask's pixel to the other mask."""
    return max(
        cv2.distanceTransform((~there).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[
            here
        ].max()
        for here, there in ((first, second), (second, first))
    )


def test_the_background_moves_slowly() -> None:
    first, second = (
        frame.rgb.mean(axis=2)
        for frame in render_clip(frames=2, size_hw=(240, 428), objects=0, seed=1)
    )
    (dx, dy), response = cv2.phaseCorrelate(first, second)
    assert response > 0.5
    assert 0.1 < np.hypot(dx, dy) < 2


@pytest.mark.parametrize("frame_number", [0, 22])
def test_masks_match_the_image(frame_number: int) -> None:
    """With and without the leaf, pixels differ in its mask and its shadow only."""
    size_hw, count = (240, 428), frame_number + 1
    *_, with_leaf = render_clip(frames=count, size_hw=size_hw, objects=3)
    *_, without = render_clip(frames=count, size_hw=size_hw, objects=2)
    difference = np.abs(with_leaf.rgb.astype(int) - without.rgb).max(axis=2)
    leaf = with_leaf.labels == LEAF
    np.testing.assert_array_equal(with_leaf.labels[~leaf], without.labels[~leaf])
    assert edge_agreement(difference, leaf) > 0.95
    # Positive control: the same mask a few pixels aside does not pass.
    assert edge_agreement(difference, np.roll(leaf, (6, -6), (0, 1))) < 0.9


def edge_agreement(difference: np.ndarray, mask: np.ndarray) -> float:
    """Compute the share of upper left contour pixels that changed as expected.

    The shadow falls to the lower right, so that side is not tested.

    The shadow falls to the lower right, so the other side is left alone.
    """
    kernel = np.ones((9, 9), np.uint8)
    near = cv2.dilate(mask.astype(np.uint8), kernel) - cv2.erode(mask.astype(np.uint8), kernel)
    unsure = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) - cv2.erode(
        mask.astype(np.uint8), np.ones((5, 5), np.uint8)
    )
    lit_side = np.zeros_like(mask)
    shifted = np.roll(mask, (10, 10), (0, 1))
    lit_side[~shifted] = True  # what the mask leaves when moved to the lower right
    band = (near > 0) & (unsure == 0) & lit_side
    assert band.sum() > 200
    return float(((difference > 12) == mask)[band].mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "at least one frame"),
        ({"objects": 4}, "0 to 3 objects"),
        ({"objects": -1}, "0 to 3 objects"),
        ({"size_hw": (16, 400)}, "at least 32x32"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        render_clip(**arguments)


def test_written_clip_matches_the_rendered_one(tmp_path: Path) -> None:
    size_hw = (120, 214)
    paths = write_clip(tmp_path / "clip", frames=4, size_hw=size_hw)
    rendered = list(render_clip(frames=4, size_hw=size_hw))
    with av.open(str(paths.video)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == CLIP_FPS
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == paths.frames == 4
    for got, want in zip(decoded, rendered, strict=True):
        assert cv2.PSNR(got, want.rgb) > CLIP_PSNR_DB
        assert cv2.PSNR(got[:, 4:], want.rgb[:, :-4]) < CLIP_PSNR_DB  # positive control
    np.testing.assert_array_equal(load_annotation(paths.first_mask), rendered[0].labels)
    (sequence,) = load_davis(paths.davis_root, "val").sequences
    for path, want in zip(sequence.annotation_paths, rendered, strict=True):
        np.testing.assert_array_equal(load_annotation(path), want.labels)


def test_a_shorter_clip_replaces_a_longer_one(tmp_path: Path) -> None:
    for frames in (4, 3):
        paths = write_clip(tmp_path, frames=frames, size_hw=(32, 64))
    (sequence,) = load_davis(paths.davis_root, "val").sequences
    assert len(sequence.annotation_paths) == 3
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "arguments", [{"size_hw": (121, 214)}, {"size_hw": (120, 213)}, {"objects": 0}]
)
def test_a_clip_that_cannot_be_written_leaves_nothing(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(InputError, match="even sides"):
        write_clip(tmp_path / "clip", **{"size_hw": (120, 214), **arguments})
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip").write_text("not a folder")
    with pytest.raises(OutputError, match="clip"):
        write_clip(tmp_path / "clip", frames=3, size_hw=(32, 64))


def test_noise_is_standardised_and_reproducible() -> None:
    one, other = (fractal_noise(np.random.default_rng(4), (50, 70), 16) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert abs(float(one.mean())) < 1e-3
    assert abs(float(one.std()) - 1) < 1e-3


def test_a_ramp_hits_its_stops_and_clips_outside() -> None:
    value = np.array([[-1, 0, 0.5, 1, 2]], np.float32)
    stops = [(0, 0, 0), (255, 0, 0), (255, 255, 255)]
    expected = [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    np.testing.assert_allclose(colour_ramp(value, stops)[0], expected, atol=1e-6)


def test_clip_removes_no_picture_of_the_user(tmp_path: Path) -> None:
    write_clip(tmp_path, frames=3, size_hw=(32, 64))
    annotations = next((tmp_path / "Annotations" / "480p").iterdir())
    (annotations / "mine.png").touch()
    write_clip(tmp_path, frames=2, size_hw=(32, 64))
    assert {path.name for path in annotations.iterdir()} == {"00000.png", "00001.png", "mine.png"}
    annotations.rename(tmp_path / "theirs")
    annotations.symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="is a symbolic link"):
        write_clip(tmp_path, frames=1, size_hw=(32, 64))
    assert (tmp_path / "theirs" / "00001.png").exists()

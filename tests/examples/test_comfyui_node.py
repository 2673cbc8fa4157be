"""The example for ComfyUI with arrays and with tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from examples import comfyui_node
from mpn.errors import InputError
from mpn.runtime.pipeline import Pipeline
from tests.emulation.engines import fake_engine_set
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels

FRAMES = 5
IMAGES = np.stack(scene(FRAMES)).astype(np.float32) / 255
MASK = (scene_labels(2) == 1)[None].astype(np.float32)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the engines of the package."""

    def from_engines(*_: Any, **__: Any) -> Pipeline:
        return Pipeline(fake_engine_set(frame_size_hw=SCENE_HW))

    monkeypatch.setattr(Pipeline, "from_engines", from_engines)


def run(images: Any, mask: Any, **inputs: Any) -> Any:
    node = comfyui_node.NODE_CLASS_MAPPINGS["MpnPropagate"]()
    assert node.RETURN_TYPES == ("MASK",)
    assert set(node.INPUT_TYPES()["required"]) == {"images", "mask", "frame", "direction"}
    (masks,) = getattr(node, node.FUNCTION)(images, mask, **inputs)
    return masks


def test_batch_gets_a_mask_for_each_image() -> None:
    masks = run(IMAGES, MASK, frame=2, direction="both")
    assert masks.shape == (FRAMES, *SCENE_HW)
    assert masks.dtype == np.float32
    for index, got in enumerate(masks > 0.5):
        truth = scene_labels(index) == 1
        assert (got & truth).sum() / (got | truth).sum() > 0.8
    assert not run(IMAGES, MASK, frame=2, direction="forward")[:2].any()


def test_frame_before_the_batch_is_refused() -> None:
    with pytest.raises(InputError, match="a whole number from 0, got -1"):
        run(IMAGES, MASK, frame=-1)
    with pytest.raises(InputError, match="mask was given for frame 5, but the last frame is 4"):
        run(IMAGES, MASK, frame=FRAMES)


def test_tensors_give_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    masks = run(torch.from_numpy(IMAGES), torch.from_numpy(MASK), frame=2)
    assert isinstance(masks, torch.Tensor)
    np.testing.assert_array_equal(masks.numpy(), run(IMAGES, MASK, frame=2))


def test_masks_are_streamed() -> None:
    """Images are converted when they are due, not all at the beginning."""
    converted: list[int] = []

    class Watched(np.ndarray):
        def __getitem__(self, index: Any) -> Any:
            if isinstance(index, int):
                converted.append(index)
            return super().__getitem__(index)

    stream = comfyui_node.stream_masks(np.tile(IMAGES, (8, 1, 1, 1)).view(Watched), {0: MASK})
    index, first = next(stream)
    assert index == 0
    np.testing.assert_array_equal(first, MASK[0])
    assert len(converted) < 12
    stream.close()

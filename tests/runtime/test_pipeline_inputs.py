"""Frames and labels of a caller that are no plain NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpn._common.array_likes import rgb_from
from mpn.errors import InputError
from mpn.masks import DAVIS_PALETTE
from mpn.runtime.session.propagate import propagate
from tests.runtime.pipelines import PAN, make, run


class Convertible:
    """An object of another library, such as a tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array


def palette_image(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels).convert("L")
    image.putpalette(DAVIS_PALETTE.tobytes())
    return image


FORMS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "lists": (np.ndarray.tolist, np.ndarray.tolist),
    "Pillow": (Image.fromarray, palette_image),
    "matrix": (list, np.matrix),
    "other": (Convertible, Convertible),
    "booleans": (np.asarray, lambda labels: (labels > 0).tolist()),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("form", FORMS)
def test_array_likes_give_the_masks_of_arrays(form: str) -> None:
    to_frame, to_labels = FORMS[form]
    expected = run(make(PAN), PAN)[:4]
    pipeline = make(PAN)
    got = [pipeline.start(to_frame(PAN.frames[0]), to_labels(PAN.labels[0]))]
    got += [pipeline.step(to_frame(frame)) for frame in PAN.frames[1:4]]
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
    pipeline.correct(to_labels(PAN.labels[3]))
    again = propagate(
        [to_frame(frame) for frame in PAN.frames[:4]], to_labels(PAN.labels[0]), pipeline=make(PAN)
    )
    for one, other in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


WRONG = [
    None,
    "frame.png",
    Path("frame.png"),
    b"bytes",
    5,
    {"rgb": 1},
    [[1, 2], [3]],
    [[[0, 0, 256]]],
    object(),
    np.zeros((4, 4)),
    np.ma.masked_array(np.zeros((60, 90), np.uint8)),
    Image.new("F", (90, 60)),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: type(value).__name__)
def test_other_values_are_input_errors(wrong: Any) -> None:
    pipeline = make(PAN)
    with pytest.raises(InputError, match="must be"):
        pipeline.start(wrong, PAN.labels[0])
    with pytest.raises(InputError, match="must be"):
        pipeline.start(PAN.frames[0], wrong)
    pipeline.start(PAN.frames[0], PAN.labels[0])
    with pytest.raises(InputError, match="must be"):
        pipeline.step(wrong)
    for method in (pipeline.correct, pipeline.add_objects):
        with pytest.raises(InputError, match="must be"):
            method(wrong)
    with pytest.raises(InputError, match="must be"):
        next(propagate([wrong], PAN.labels[0], pipeline=pipeline))
    assert pipeline.step(PAN.frames[1]).index == 1


def test_path_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"got the path 'a\.png': read the file first"):
        make(PAN).start(Path("a.png"), PAN.labels[0])
    with pytest.raises(InputError, match="mode RGB"):
        make(PAN).start(PAN.frames[0], Image.fromarray(PAN.frames[0]))


@pytest.mark.parametrize("video", [None, 5, object()])
def test_video_of_another_type_is_an_input_error(video: Any) -> None:
    with pytest.raises(InputError, match="a video must be a path, an open source or an iterable"):
        next(propagate(video, PAN.labels[0], pipeline=make(PAN)))


def test_photograph_is_turned_upright() -> None:
    """EXIF orientation 6 is shown after a turn by 90 degrees clockwise."""
    image = Image.fromarray(np.rot90(PAN.frames[0]))
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(rgb_from(image), PAN.frames[0])

from __future__ import annotations

import numpy as np
import pytest

from mpn.cuda.array import DeviceArray
from mpn.errors import InputError
from mpn.runtime.device.images import box_rows, boxes_from_rows, check_rgb_array, normalisation
from mpn.types import Roi
from tests.runtime.host.test_ops import MEAN, STD
from tests.tolerances import NORMALISED_RGB

BOXES = [Roi(5, 4, 47, 34), None, Roi(0, 0, 9, 30)]


def test_boxes_go_there_and_back() -> None:
    assert boxes_from_rows(box_rows(BOXES)) == tuple(BOXES)
    assert box_rows([]).shape == (0, 4)


def test_normalisation_is_that_of_the_cpu() -> None:
    given = normalisation(MEAN, STD)
    value = 200 * given["gain1"] + given["offset1"]
    assert value == pytest.approx((200 / 255 - MEAN[1]) / STD[1], abs=NORMALISED_RGB)


def test_frames_of_another_kind_are_refused() -> None:
    check_rgb_array(DeviceArray(256, (4, 5, 3), np.uint8, None))
    with pytest.raises(InputError, match=r"\(H, W, 3\) uint8 RGB, got \(4, 5, 3\) float32"):
        check_rgb_array(DeviceArray(256, (4, 5, 3), np.float32, None))

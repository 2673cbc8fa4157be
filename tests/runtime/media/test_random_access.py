from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpn.errors import VideoError
from mpn.runtime.media.random_access import FrameAccess
from mpn.runtime.media.video import open_video
from tests.runtime.media.test_backwards import (
    FRAMES,
    b_frames,
    images,
    one_key_frame,
    open_gop,
    raw_stream,
    transport_stream,
    variable_rate,
    webp,
)

ORDER = (17, 18, 16, 29, 0, 9, 8, 3, 22)


@pytest.mark.parametrize(
    ("write", "is_seekable"),
    [(b_frames, True), (open_gop, True), (one_key_frame, True), (variable_rate, True),
     (raw_stream, False), (transport_stream, False), (images, True), (webp, True)],
)  # fmt: skip
def test_frame_by_index_is_that_of_the_iteration(
    tmp_path: Path, write: Callable[[Path], Path], is_seekable: bool
) -> None:
    path = write(tmp_path)
    with open_video(path) as video:
        forward = list(video)
    with FrameAccess(str(path)) as access:
        assert access.frame_count == FRAMES
        assert access.names == tuple(frame.name for frame in forward)
        for index in ORDER:
            *before, frame = access.frames_up_to(index, kept=3)
            assert [other.index for other in before] == list(range(index - len(before), index))
            assert (frame.index, frame.name) == (index, forward[index].name)
            np.testing.assert_array_equal(frame.rgb, forward[index].rgb)
        assert access.is_seekable == is_seekable
        with pytest.raises(VideoError):
            list(access.frames_up_to(FRAMES))


def test_near_frame_is_read_without_seeking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeks: list[int] = []
    with FrameAccess(str(b_frames(tmp_path))) as access:
        seek = access._seek
        monkeypatch.setattr(access, "_seek", lambda key: (seeks.append(key), seek(key)))
        for index in (10, 11, 13, 2, 20):
            list(access.frames_up_to(index))
    assert seeks == [9, 0, 18]

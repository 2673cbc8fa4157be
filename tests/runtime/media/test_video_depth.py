"""Videos of 16 bits per value that use fewer."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from mpn.runtime.media.video import open_video


def write_deep(path: Path, bits: int, pix_fmt: str) -> Path:
    """Encode frames whose largest value is that of a number of bits."""
    planes = 4 if pix_fmt == "rgba64le" else 1
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 24, 31, pix_fmt
        for index in range(3):
            values = np.full((24, 31, planes), index, "<u2")
            values[-1, -1, 0] = (1 << bits) - 1
            values[..., 3:] = 65535
            frame = av.VideoFrame(31, 24, pix_fmt)
            plane = frame.planes[0]
            rows = np.zeros((24, plane.line_size // 2), "<u2")
            rows[:, : 31 * planes] = values.reshape(24, -1)
            plane.update(rows.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("bits", "times"), [(12, 16), (10, 64), (14, 4), (8, 256)])
@pytest.mark.parametrize("pix_fmt", ["gray16le", "rgba64le"])
def test_video_with_unused_bits_is_warned_about(
    tmp_path: Path, bits: int, times: int, pix_fmt: str
) -> None:
    with open_video(write_deep(tmp_path / "a.mkv", bits, pix_fmt)) as video:
        assert sum(1 for _ in video) == 3
        (warning,) = video.warnings
    assert f"uses {bits} of them" in warning
    assert f"{times} times too dark" in warning


@pytest.mark.parametrize(("bits", "pix_fmt"), [(16, "gray16le"), (15, "rgba64le"), (8, "gray")])
def test_video_that_uses_its_bits_is_not(tmp_path: Path, bits: int, pix_fmt: str) -> None:
    path = tmp_path / "a.mkv"
    if pix_fmt == "gray":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width, stream.pix_fmt = 24, 31, pix_fmt
            frame = av.VideoFrame.from_ndarray(np.full((24, 31), 9, np.uint8), format="gray")
            container.mux([*stream.encode(frame), *stream.encode(None)])
    else:
        write_deep(path, bits, pix_fmt)
    with open_video(path) as video:
        assert sum(1 for _ in video)
        assert video.warnings == []

"""Against a fake of PyNvVideoCodec: what the real one gives, only a GPU can show."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn.cuda.api import is_on_device
from mpn.errors import MissingExtraError, VideoError
from mpn.runtime.video_nvdec import NvdecFrames


class FakeFrame:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __dlpack__(self, **how: Any) -> str:
        return f"capsule {how}"

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


@pytest.fixture
def video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(shape=(48, 64, 3), count=5, fails_at=None, opened={})

    class SimpleDecoder:
        def __init__(self, path: str, **how: Any) -> None:
            if fake.count == 0:
                raise RuntimeError("NVDEC says\nno")
            fake.opened = how

        def __len__(self) -> int:
            return int(fake.count)

        def __getitem__(self, number: int) -> FakeFrame:
            if number == fake.fails_at:
                raise RuntimeError("damaged")
            return FakeFrame(fake.shape)

    module = SimpleNamespace(
        SimpleDecoder=SimpleDecoder, OutputColorType=SimpleNamespace(RGB="rgb")
    )
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
    fake.path = tmp_path / "clip.mp4"
    fake.path.write_bytes(b"")
    return fake


def test_frames_are_device_arrays_with_the_attributes_of_a_frame(video: SimpleNamespace) -> None:
    with NvdecFrames(video.path, index=1) as frames:
        assert len(frames) == 5
        given = list(frames)
    assert video.opened == {"gpu_id": 1, "use_device_memory": True, "output_color_type": "rgb"}
    assert len(given) == 5
    for frame in given:
        assert is_on_device(frame)
        assert (frame.shape, frame.ndim, frame.dtype) == ((48, 64, 3), 3, np.uint8)
        assert frame.__dlpack__(stream=7) == "capsule {'stream': 7}"


def test_what_cannot_be_decoded_is_told_in_one_line(video: SimpleNamespace) -> None:
    video.fails_at = 2
    with pytest.raises(VideoError, match=r"frame 2 of .* cannot be decoded"):
        list(NvdecFrames(video.path))
    video.fails_at, video.shape = None, (72, 64)
    with pytest.raises(VideoError, match=r"is \(72, 64\) on the GPU"):
        list(NvdecFrames(video.path))
    video.count = 0
    with pytest.raises(VideoError, match="cannot be decoded on GPU 0") as raised:
        NvdecFrames(video.path)
    assert "\n" not in str(raised.value)
    with pytest.raises(VideoError, match="no such video"):
        NvdecFrames(video.path.with_name("other.mp4"))


def test_without_the_package_its_extra_is_named(
    video: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(MissingExtraError, match=r"\[nvdec\]"):
        NvdecFrames(video.path)

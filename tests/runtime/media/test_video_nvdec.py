"""NVDEC against a fake of PyNvVideoCodec whose device memory is that of the host.

Only a GPU can show that the real package behaves so.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from mpn.errors import InputError, MissingExtraError, MpnError, VideoError
from mpn.masks import save_labels
from mpn.runtime.media import video_nvdec
from mpn.runtime.media.video import VideoSource, open_video
from mpn.runtime.media.video_nvdec import DeviceFrame, NvdecVideo, choose_decoder, device_of
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.propagate import propagate
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import (
    NTSC,
    SCENE_HW,
    scene,
    scene_labels,
    write_folder,
    write_streams,
    write_video,
)

FRAMES = 8


class FakeArray:
    """An array in "device" memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.shape, self.dtype = pixels.shape, pixels.dtype
        self.__cuda_array_interface__ = {"data": (pixels.ctypes.data, False)}


class FakeMemory:
    """Implement ``DeviceMemory``."""

    downloads = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> FakeArray:
        return FakeArray(np.empty(shape, dtype))

    def copy(self, source: FakeArray, to: FakeArray) -> None:
        to.pixels[...] = source.pixels

    def download(self, array: FakeArray) -> np.ndarray:
        FakeMemory.downloads += 1
        return array.pixels.copy()

    def array_from(self, foreign: FakeArray) -> FakeArray:
        return foreign


class FakeCodec(SimpleNamespace):
    """The used part of PyNvVideoCodec: decodes on the CPU into one reused buffer."""

    def __init__(self, clip: Path) -> None:
        with open_video(clip) as video:
            pixels = [frame.rgb for frame in video]
        fake = self
        super().__init__(
            count=len(pixels), fails_at=None, shape=None, opened={}, OutputColorType=_RGB
        )
        buffer = FakeArray(np.empty_like(pixels[0]))

        class SimpleDecoder:
            def __init__(self, path: str, **how: Any) -> None:
                if fake.count == 0:
                    raise RuntimeError("NVDEC:\nunsupported")
                fake.opened = {"path": path, **how}

            def __len__(self) -> int:
                return int(fake.count)

            def __getitem__(self, number: int) -> FakeArray:
                if number == fake.fails_at:
                    raise RuntimeError("damaged")
                if fake.shape is not None:
                    return FakeArray(np.empty(fake.shape, np.uint8))
                buffer.pixels[...] = pixels[number]
                return buffer

        self.SimpleDecoder = SimpleDecoder


_RGB = SimpleNamespace(RGB="rgb")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture
def codec(clip: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCodec:
    fake = FakeCodec(clip)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(video_nvdec, "find_spec", lambda name: fake)
    monkeypatch.setattr(video_nvdec, "_cuda_memory", lambda device: FakeMemory())
    monkeypatch.setattr(FakeMemory, "downloads", 0)
    return fake


@pytest.fixture
def cpu_frames(clip: Path) -> list[Any]:
    with open_video(clip) as video:
        return list(video)


def pixels_of(frame: Any) -> np.ndarray:
    if isinstance(frame.rgb, DeviceFrame):
        array: FakeArray = frame.rgb._array
        return array.pixels
    return np.asarray(frame.rgb)


def test_nvdec_is_not_used_for_several_video_streams(tmp_path: Path, codec: FakeCodec) -> None:
    """PyNvVideoCodec chooses a stream itself."""
    film, small = ("libx264", (48, 64), 3, 0), ("libx264", (24, 32), 3, 0)
    path = write_streams(tmp_path / "two.mp4", small, film)
    with open_video(path, decode="auto", device=0) as video:
        assert video.decoder == "cpu"
        assert "several video streams" in video.decoder_note
    with pytest.raises(InputError, match="several video streams"):
        open_video(path, decode="nvdec", device=0)


@pytest.mark.parametrize(("start", "end"), [(None, None), (2, 6), (7, None)])
def test_nvdec_delivers_the_frames_and_times_of_the_cpu(
    clip: Path, codec: FakeCodec, start: int | None, end: int | None
) -> None:
    with open_video(clip, start=start, end=end) as video:
        expected = list(video)
    with open_video(clip, start=start, end=end, decode="nvdec", device=1) as video:
        assert isinstance(video, NvdecVideo)
        assert video.decoder == "nvdec"
        frames = list(video)  # all held: the fake reuses its buffer
    assert codec.opened == {
        "path": str(clip), "gpu_id": 1, "use_device_memory": True, "output_color_type": "rgb",
    }  # fmt: skip
    assert [(f.index, f.pts_s, f.name) for f in frames] == [
        (f.index, f.pts_s, f.name) for f in expected
    ]
    for frame, cpu in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(pixels_of(frame), cpu.rgb)
    assert isinstance(frames[0].rgb, np.ndarray)
    assert all(isinstance(frame.rgb, DeviceFrame) for frame in frames[1:])
    assert FakeMemory.downloads == 1


def test_reordered_packets_give_times_in_order(tmp_path: Path) -> None:
    """A clip with B frames, whose packets are not in the order of presentation."""

    def with_b_frames(stream: Any) -> None:
        stream.codec_context.max_b_frames = 3

    path = write_video(tmp_path / "b.mp4", scene(20), rate=NTSC, setup=with_b_frames)
    with av.open(str(path)) as container:  # control
        stored = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stored != sorted(stored)
    with open_video(path) as video:
        expected = [frame.pts_s for frame in video]
    times = list(video_nvdec._packet_times(path))
    assert times == expected
    assert times[1] - times[0] == Fraction(1001, 30000)


def test_host_frames_are_those_that_were_copied(clip: Path, codec: FakeCodec) -> None:
    with choose_decoder(open_video(clip), "nvdec", 0, copy_to_host=True) as video:
        for frame in video:
            host = video.host_frame(frame)
            np.testing.assert_array_equal(host.rgb, pixels_of(frame))
            assert isinstance(host.rgb, np.ndarray)
    assert FakeMemory.downloads == FRAMES
    with choose_decoder(open_video(clip), "nvdec", 0) as video:
        assert isinstance(video.host_frame(list(video)[1]).rgb, DeviceFrame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fails_at": 2}, r"frame 2 of .* cannot be decoded on the GPU \(damaged\)"),
        ({"shape": (72, 64)}, r"is \(72, 64\) uint8 on the GPU"),
        ({"shape": (32, 32, 3)}, "all frames must have one size"),
        ({"count": 5}, "NVDEC gives 5 frames of .* holds more"),
    ],
)
def test_frame_that_nvdec_cannot_give_is_a_video_error(
    clip: Path, codec: FakeCodec, change: dict[str, Any], message: str
) -> None:
    vars(codec).update(change)
    with (
        open_video(clip, decode="nvdec", device=0) as video,
        pytest.raises(VideoError, match=message),
    ):
        list(video)


def rotated(path: Path) -> VideoSource:
    video = open_video(path)
    decoder = video._decoder  # type: ignore[attr-defined]
    decoder.orientation = replace(decoder.orientation, flip_x=True)
    return video


def images(path: Path) -> VideoSource:
    return open_video(write_folder(path.parent / "images", scene(2)))


@pytest.mark.parametrize(
    ("source", "device", "message"),
    [
        (open_video, None, "the pipeline works on the CPU"),
        (rotated, 0, "is stored rotated"),
        (images, 0, "is not a video file"),
    ],
)
def test_nvdec_that_is_not_possible_is_one_line(
    tmp_path: Path, codec: FakeCodec, source: Any, device: int | None, message: str
) -> None:
    path = write_video(tmp_path / "clip.mp4", scene(2))
    with source(path) as video:
        with pytest.raises(InputError, match=rf"^--decode nvdec cannot be used: .*{message}"):
            choose_decoder(video, "nvdec", device)
        chosen = choose_decoder(video, "auto", device)
        assert chosen is video
        assert chosen.decoder == "cpu"
        assert (message in chosen.decoder_note) is (device is not None)


def test_file_that_nvdec_does_not_open_depends_on_the_option(clip: Path, codec: FakeCodec) -> None:
    codec.count = 0
    with open_video(clip) as video:
        with pytest.raises(VideoError, match="cannot be decoded on GPU 0") as raised:
            choose_decoder(video, "nvdec", 0)
        assert "\n" not in str(raised.value)
        assert choose_decoder(video, "auto", 0) is video
        assert "NVDEC: unsupported" in video.decoder_note
        assert len(list(video)) == FRAMES


def test_missing_package_names_its_extra(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    monkeypatch.setattr(video_nvdec, "find_spec", lambda name: None)
    with open_video(clip) as video:
        with pytest.raises(MissingExtraError, match=r"\[nvdec\]"):
            choose_decoder(video, "nvdec", 0)
        assert choose_decoder(video, "auto", 0) is video
    with pytest.raises(InputError, match="--decode must be one of auto, cpu, nvdec, got 'gpu'"):
        open_video(clip, decode="gpu")  # type: ignore[arg-type]


def test_device_of_a_pipeline_is_that_of_its_engines() -> None:
    def pipeline(backend: str, device: Any) -> Any:
        return SimpleNamespace(engines=SimpleNamespace(backend=backend, device=device))

    assert device_of(pipeline("cpu", None)) is None
    assert device_of(pipeline("cuda", None)) == 0
    assert device_of(pipeline("tensorrt", SimpleNamespace(index=2))) == 2
    assert device_of(object()) is None


@pytest.fixture
def device_pipeline(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Make a CPU pipeline accept device frames, and list the classes of its frames."""
    given: list[type] = []
    step = Pipeline.step

    def step_with_device_frames(self: Pipeline, rgb: Any) -> Any:
        given.append(type(rgb))
        return step(self, rgb._array.pixels if isinstance(rgb, DeviceFrame) else rgb)

    monkeypatch.setattr(Pipeline, "step", step_with_device_frames)
    monkeypatch.setattr("mpn.runtime.session.session.device_of", lambda pipeline: 0)
    monkeypatch.setattr(video_nvdec, "device_of", lambda pipeline: 0)
    return given


def test_run_with_nvdec_matches_the_cpu(
    clip: Path, codec: FakeCodec, device_pipeline: list[type], tmp_path: Path
) -> None:
    engines = make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)
    save_labels(tmp_path / "first.png", scene_labels(0))
    request = RunRequest(
        video=str(clip), masks={None: tmp_path / "first.png"}, engine_dir=engines, backend="cpu",
        threads=1,
    )  # fmt: skip
    for decode in ("cpu", "nvdec", "auto"):
        run_video(replace(request, decode=decode, out=tmp_path / decode))  # type: ignore[arg-type]
    kinds = [np.ndarray] * (FRAMES - 1) + [DeviceFrame] * (FRAMES - 1) * 2
    assert device_pipeline == kinds
    assert FakeMemory.downloads == 2 * FRAMES  # for the overlay
    report = json.loads((tmp_path / "nvdec" / "run.json").read_text())
    assert report["decode"] == {"requested": "nvdec", "used": "nvdec", "note": ""}
    report = json.loads((tmp_path / "auto" / "run.json").read_text())
    assert report["decode"] == {"requested": "auto", "used": "nvdec", "note": ""}
    for name in ("overlay.mp4", *(f"masks/{k:05d}.png" for k in range(FRAMES))):
        content = (tmp_path / "cpu" / name).read_bytes()
        assert (tmp_path / "nvdec" / name).read_bytes() == content, name
        assert (tmp_path / "auto" / name).read_bytes() == content, name


def test_run_with_nvdec_on_the_cpu_is_refused(clip: Path, codec: FakeCodec, tmp_path: Path) -> None:
    engines = make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)
    save_labels(tmp_path / "first.png", scene_labels(0))
    request = RunRequest(
        video=str(clip), masks={None: tmp_path / "first.png"}, engine_dir=engines, backend="cpu",
        decode="nvdec", out=tmp_path / "out",
    )  # fmt: skip
    with pytest.raises(MpnError, match="--decode nvdec cannot be used"):
        run_video(request)
    assert not (tmp_path / "out").exists()
    results = propagate(clip, scene_labels(0), engine_dir=engines, backend="cpu", decode="nvdec")
    with pytest.raises(MpnError, match="--decode nvdec cannot be used"):
        next(results)


def test_propagate_with_nvdec_gives_the_labels_of_the_cpu(
    clip: Path, codec: FakeCodec, device_pipeline: list[type], tmp_path: Path
) -> None:
    engines = make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)
    labels = {
        decode: [
            result.labels
            for result in propagate(
                clip, scene_labels(0), engine_dir=engines, backend="cpu", threads=1, decode=decode
            )
        ]
        for decode in ("cpu", "auto")
    }
    np.testing.assert_array_equal(labels["cpu"], labels["auto"])
    assert DeviceFrame in device_pipeline

"""Decode a video file on the GPU with NVDEC, through NVIDIA's PyNvVideoCodec.

Not yet tested on a GPU: the tests use a fake of the package.

The time stamps come from FFmpeg's demuxer. The colours of PyNvVideoCodec may differ from FFmpeg's
by a few levels, so the masks are close to those of the CPU decoder, not identical.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from mpn._common.text import one_line
from mpn._common.validation import check_choice
from mpn.engines.open import HOST_BACKENDS
from mpn.errors import InputError, MpnError, VideoError, import_or_explain
from mpn.runtime.media.decoder import open_file_container
from mpn.runtime.media.video import DECODERS, Decode, VideoSource
from mpn.runtime.media.video_file import VideoStream
from mpn.types import Frame, UInt8Array

_PACKAGE = "PyNvVideoCodec"
_REORDERED_PACKETS = 40
"""Packets to sort by time: H.264 and HEVC reorder at most 16 frames, of up to two packets each."""

_HELD_FRAMES = 3
"""Frames that stay allocated: a pipeline reads the current and the next one."""


class DeviceMemory(Protocol):
    """The memory of one GPU; :class:`mpn.cuda.device.CudaDevice` implements it."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Allocate an array."""

    def copy(self, source: Any, to: Any) -> None:
        """Copy an array on the device."""

    def download(self, array: Any) -> Any:
        """Copy an array to the host."""

    def array_from(self, foreign: Any) -> Any:
        """View an array of another library."""


class DeviceFrame:
    """A frame in device memory with the NumPy attributes that a pipeline reads.

    Args:
        array: (H, W, 3) uint8 RGB, with ``__cuda_array_interface__``.
        host: The same pixels on the host, if they were copied.
    """

    ndim = 3

    def __init__(self, array: Any, host: UInt8Array | None = None) -> None:
        self._array = array
        self.host = host
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(np.uint8)

    @property
    def __cuda_array_interface__(self) -> Any:
        """The array interface, version 3."""
        return self._array.__cuda_array_interface__


class NvdecVideo(VideoSource):
    """Frames of a video file, decoded on the GPU. Use :func:`choose_decoder`.

    Sizes, times and ``first_frame`` are those of the opened file. The iteration yields the first
    frame, which the pipeline starts from, as a host array and each later one as a
    :class:`DeviceFrame`. Frames do not share memory and stay valid while they are referenced.

    Args:
        stream: The opened file; :meth:`close` closes it.
        device: Index of the GPU.
        copy_to_host: Copy each frame to the host too, for :meth:`host_frame`.
        open_memory: Opens the memory of a GPU. Called in the iterating thread.

    Raises:
        MissingExtraError: If PyNvVideoCodec is not installed.
        VideoError: If NVDEC cannot decode the file.
    """

    decoder = "nvdec"

    def __init__(
        self,
        stream: VideoStream,
        device: int,
        *,
        copy_to_host: bool,
        open_memory: Callable[[int], DeviceMemory],
    ) -> None:
        codec = import_or_explain(_PACKAGE, extra="nvdec", purpose="decoding on the GPU")
        super().__init__(
            name=stream.name,
            address=stream.address,
            first_frame=stream.first_frame,
            fps=stream.fps,
            time_base=stream.time_base,
            frame_count_hint=stream.frame_count_hint,
            end_index=stream.end_index,
        )
        self.sample_aspect_ratio = stream.sample_aspect_ratio
        self._stream, self._device, self._copy_to_host = stream, device, copy_to_host
        self._open_memory = open_memory
        try:
            self._decoder: Any = codec.SimpleDecoder(
                str(stream.path),
                gpu_id=device,
                use_device_memory=True,
                output_color_type=codec.OutputColorType.RGB,
            )
            self._count = len(self._decoder)
        except Exception as error:  # the package raises the exceptions of its C++ code
            raise VideoError(
                f"{self.address} cannot be decoded on GPU {device} ({one_line(error)}): use "
                "--decode cpu"
            ) from error

    def __iter__(self) -> Iterator[Frame]:
        """Decode from the first frame on.

        Raises:
            VideoError: If a frame cannot be decoded, is not (H, W, 3) uint8 or has another size, or
                the decoder has fewer frames than the file.
        """
        first = self.first_frame
        self._first = None
        memory = self._open_memory(self._device)
        held: deque[Any] = deque(maxlen=_HELD_FRAMES)
        for index, pts_s in enumerate(_packet_times(self._stream.path)):
            if self._stream.end is not None and index >= self._stream.end:
                return
            if index < first.index:
                continue
            rgb = self._decoded(memory, index, needs_host=index == first.index)
            held.append(rgb)
            frame = Frame(index=index, rgb=rgb, pts_s=pts_s, name=f"{index:05d}")  # type: ignore[arg-type]
            yield self._check_size(self.host_frame(frame) if index == first.index else frame)

    def backwards(self, first: int, end: int) -> Iterator[Frame]:
        """See :meth:`VideoSource.backwards`; the CPU decodes."""
        return self._stream.backwards(first, end)

    def host_frame(self, frame: Frame) -> Frame:
        """See :meth:`VideoSource.host_frame`; unchanged without ``copy_to_host``."""
        if isinstance(frame.rgb, DeviceFrame) and frame.rgb.host is not None:
            return replace(frame, rgb=frame.rgb.host)
        return frame

    def _decoded(self, memory: DeviceMemory, index: int, *, needs_host: bool) -> DeviceFrame:
        if index >= self._count:
            raise VideoError(
                f"NVDEC gives {self._count} frames of {self.address}, but the file holds more: use "
                "--decode cpu"
            )
        try:
            view = memory.array_from(self._decoder[index])
            shape, dtype = tuple(map(int, view.shape)), np.dtype(view.dtype)
            if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
                raise VideoError(
                    f"frame {index} of {self.address} is {shape} {dtype} on the GPU, expected "
                    "(height, width, 3) uint8: this version of PyNvVideoCodec has another layout"
                )
            # The decoder may reuse its memory for the next frame.
            array = memory.empty(shape, dtype)
            memory.copy(view, array)
            is_copied = needs_host or self._copy_to_host
            return DeviceFrame(array, memory.download(array) if is_copied else None)
        except MpnError:
            raise
        except Exception as error:
            raise VideoError(
                f"frame {index} of {self.address} cannot be decoded on the GPU ({one_line(error)})"
            ) from error

    def _frames_after_first(self) -> Iterator[Frame]:
        raise NotImplementedError  # __iter__ decodes the first frame as well

    def _release(self) -> None:
        self._decoder = None
        self._stream.close()


def choose_decoder(
    video: VideoSource,
    decode: Decode,
    device: int | None,
    *,
    copy_to_host: bool = False,
    open_memory: Callable[[int], DeviceMemory] | None = None,
) -> VideoSource:
    """Return the source that decodes an opened video with the given decoder.

    Args:
        video: Opened with the CPU decoder, not iterated.
        decode: ``"cpu"``; ``"nvdec"``; ``"auto"``: NVDEC if the pipeline runs on a GPU,
            PyNvVideoCodec is installed and NVDEC supports the file, else the CPU.
        device: Index of the GPU of the pipeline; None: it runs on the host.
        copy_to_host: Whether :meth:`VideoSource.host_frame` is called for each frame.
        open_memory: Opens the memory of a GPU; default: with cuda-core.

    Returns:
        ``video`` or an :class:`NvdecVideo`, which closes ``video``.

    Raises:
        InputError: If ``decode`` is unknown, or ``"nvdec"`` cannot be used.
        MissingExtraError: If ``"nvdec"`` is given and PyNvVideoCodec is not installed.
        VideoError: If ``"nvdec"`` is given and NVDEC cannot decode the file.
    """
    check_choice("--decode", decode, DECODERS)
    if decode == "cpu" or (decode == "auto" and (device is None or find_spec(_PACKAGE) is None)):
        return video
    reason = _why_not(video, device)
    if reason is None and isinstance(video, VideoStream) and device is not None:
        try:
            return NvdecVideo(
                video, device, copy_to_host=copy_to_host, open_memory=open_memory or _cuda_memory
            )
        except MpnError as error:
            if decode == "nvdec":
                raise
            reason = str(error)
    elif decode == "nvdec":
        raise InputError(f"--decode nvdec cannot be used: {reason}; use --decode cpu")
    video.decoder_note = f"not decoded by NVDEC: {reason}"
    return video


def device_of(pipeline: Any) -> int | None:
    """Return the index of the GPU of a pipeline; None if it runs on the host."""
    engines = getattr(pipeline, "engines", None)
    if engines is None or engines.backend in HOST_BACKENDS:
        return None
    return 0 if engines.device is None else int(engines.device.index)


def _why_not(video: VideoSource, device: int | None) -> str | None:
    if device is None:
        return "the pipeline works on the CPU, and NVDEC puts frames into the memory of a GPU"
    if not isinstance(video, VideoStream) or video.is_live or not video.path.is_file():
        return f"{video.address} is not a video file"
    if not video.is_only_stream:
        return f"{video.address} has several video streams, and NVDEC takes another choice of them"
    if video.is_rotated:
        return f"{video.address} is stored rotated, and NVDEC does not turn frames upright"
    return None


def _packet_times(path: Path) -> Iterator[Fraction]:
    """Yield the presentation times of a file's frames in seconds, in order.

    Raises:
        VideoError: If the file cannot be read, or its packets have no times.
    """
    times: list[int] = []
    try:
        with open_file_container(path) as container:
            stream = container.streams.video[0]
            time_base = Fraction(stream.time_base or 0)
            for packet in container.demux(stream):
                if packet.size == 0:  # the end
                    continue
                if packet.pts is None:
                    raise VideoError(f"{path} has no time stamps: use --decode cpu")
                heapq.heappush(times, packet.pts)
                if len(times) > _REORDERED_PACKETS:
                    yield heapq.heappop(times) * time_base
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be read ({one_line(error)})") from error
    while times:
        yield heapq.heappop(times) * time_base


def _cuda_memory(device: int) -> DeviceMemory:
    from mpn.cuda.device import CudaDevice

    return CudaDevice(device)

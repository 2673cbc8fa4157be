"""Frames that are decoded on the GPU and never seen by the host. Untested: no GPU has run this.

Through NVIDIA's PyNvVideoCodec, whose frames speak DLPack. They go into ``Pipeline.step`` of a
pipeline on a device as they are; the first frame, whose labels the user gives, is copied once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpn._common.closeable import Closeable
from mpn.errors import VideoError, import_or_explain

_PURPOSE = "decoding on the GPU"


class NvdecFrames(Closeable):
    """The frames of a video file in device memory, one after the other.

    Each is (H, W, 3) uint8 RGB with ``__dlpack__``. It is valid until the one after the next is
    decoded, which is as long as a pipeline needs it.

    Args:
        path: A file that NVDEC decodes (H.264, HEVC, AV1, VP9).
        index: Number of the device.

    Raises:
        MissingExtraError: If PyNvVideoCodec is not installed.
        VideoError: If the file is missing or cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike[str], *, index: int = 0) -> None:
        if not Path(path).is_file():
            raise VideoError(f"no such video file: {path}")
        codec = import_or_explain("PyNvVideoCodec", extra="nvdec", purpose=_PURPOSE)
        self._path = Path(path)
        try:
            self._decoder: Any = codec.SimpleDecoder(
                str(path),
                gpu_id=index,
                use_device_memory=True,
                output_color_type=codec.OutputColorType.RGB,
            )
            self._count = len(self._decoder)
        except Exception as error:  # the package raises what its C++ throws
            raise VideoError(
                f"{path} cannot be decoded on GPU {index} ({' '.join(str(error).split())}): use "
                "the video's path without NVDEC"
            ) from error

    def __len__(self) -> int:
        """How many frames the file says there are."""
        return self._count

    def __iter__(self) -> Iterator[Any]:
        """Decode, from the first frame on.

        Raises:
            VideoError: If a frame cannot be decoded, or is not (H, W, 3) uint8.
        """
        held: list[Any] = []  # the decoder gives its memory back when nobody holds a frame
        for number in range(self._count):
            try:
                frame = self._decoder[number]
            except Exception as error:
                raise VideoError(
                    f"frame {number} of {self._path} cannot be decoded "
                    f"({' '.join(str(error).split())})"
                ) from error
            yield _checked(frame, number, self._path)
            held = [*held[-2:], frame]

    def close(self) -> None:
        """Forget the decoder; closing twice is allowed."""
        self._decoder = None
        self._count = 0


class DeviceFrame:
    """A frame of another library, with the attributes that a pipeline looks at.

    Args:
        frame: Has ``__dlpack__``.
        shape: (H, W, 3).
        dtype: uint8.
    """

    def __init__(self, frame: Any, shape: tuple[int, ...], dtype: Any) -> None:
        self._frame = frame
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    def __dlpack__(self, **how: Any) -> Any:
        """See the array API standard."""
        return self._frame.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        """See the array API standard."""
        kind, number = self._frame.__dlpack_device__()
        return int(kind), int(number)


def _checked(frame: Any, number: int, path: Path) -> DeviceFrame:
    import numpy as np

    shape = tuple(int(side) for side in getattr(frame, "shape", ()))
    if len(shape) != 3 or shape[2] != 3:
        raise VideoError(
            f"frame {number} of {path} is {shape} on the GPU, expected (height, width, 3): this "
            "version of PyNvVideoCodec gives another layout"
        )
    return DeviceFrame(frame, shape, np.dtype(np.uint8))

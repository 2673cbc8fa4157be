"""The H.264 encoder of this PyAV."""

from __future__ import annotations

from mpn.errors import OutputError

H264_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "20"},
    "libopenh264": {"b": "6000000"},
    "h264_videotoolbox": {"q": "60"},
    "h264_mf": {"quality": "70"},
}
"""H.264 encoders in order of preference; which ones exist depends on how FFmpeg was built. Those
that need a GPU are left out: they exist in a build and then fail where there is none."""


def h264_encoder() -> str:
    """Return the name of the H.264 encoder of this PyAV.

    Raises:
        OutputError: If FFmpeg was built without any.
    """
    import av

    for name in H264_ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except (av.error.FFmpegError, ValueError):
            continue
        return name
    raise OutputError(
        "this PyAV was built without an H.264 encoder, so overlay.mp4 cannot be written: install "
        "the wheel from PyPI (pip install av), or leave the overlay out (--save masks)"
    )

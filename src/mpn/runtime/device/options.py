"""How a device is used. None of it changes a mask."""

from __future__ import annotations

from dataclasses import dataclass

from mpn.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """How the frame on a device is run.

    Attributes:
        use_streams: Flow of the next frame and OSVOS on streams of their own; False puts
            everything on one.
        use_graphs: Start what does not change from frame to frame as CUDA graphs, from the second
            time on, where the engines can be captured. Stages within a graph have no times of
            their own.
    """

    use_streams: bool = True
    use_graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("use_streams", "use_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(
                    f"device option {name} must be true or false, got {getattr(self, name)!r}"
                )

"""How a device is used, which changes no mask; and which options of the pipeline it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpn._common.validation import check_bool
from mpn.errors import InputError
from mpn.runtime.options import PipelineOptions


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
            check_bool(f"device option {name}", getattr(self, name))


HOST_ONLY: Mapping[str, Any] = {"crf_working_scale": 1.0}
"""Options that a device has no kernels for, and the one value of each that it can work with."""


def check_options(options: PipelineOptions) -> None:
    """Raise InputError if an option asks for what only the host can do."""
    for name, possible in HOST_ONLY.items():
        value = getattr(options, name)
        if value != possible:
            raise InputError(
                f"option {name} is {value!r}, which only backend 'cpu' can do: give it as "
                f"{possible!r}, or use backend 'cpu'"
            )

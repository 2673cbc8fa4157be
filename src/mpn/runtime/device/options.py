"""Options of a device, and pipeline options without kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpn.errors import InputError
from mpn.runtime.options import PipelineOptions


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of a device; they change no mask.

    Attributes:
        use_streams: Run the flow of the next frame and OSVOS on separate streams; False runs all
            on one.
        use_graphs: Launch the stages as CUDA graphs from their second run on, if the engines can
            be captured. A graph is timed as a whole.
    """

    use_streams: bool = True
    use_graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("use_streams", "use_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(
                    f"device option {name} must be true or false, got {getattr(self, name)!r}"
                )


HOST_ONLY: Mapping[str, Any] = {"crf_working_scale": 1.0}
"""Options without kernels, and the one value of each that a device accepts."""


def check_options(options: PipelineOptions) -> None:
    """Raise InputError if an option has no kernels."""
    for name, possible in HOST_ONLY.items():
        value = getattr(options, name)
        if value != possible:
            raise InputError(
                f"option {name} is {value!r}, which only backend 'cpu' can do: give it as "
                f"{possible!r}, or use backend 'cpu'"
            )

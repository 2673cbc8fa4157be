"""mpn-runtime: deployment-optimised runtime of the Mask Propagation Network.

Importing this package is fast: torch, onnxruntime, OpenCV and PyAV are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpn.errors import MpnError

if TYPE_CHECKING:
    from mpn.runtime.options import CrfOptions as CrfOptions
    from mpn.runtime.options import FinetuneOptions as FinetuneOptions
    from mpn.runtime.options import OsvosOptions as OsvosOptions
    from mpn.runtime.options import PipelineOptions as PipelineOptions
    from mpn.runtime.options import RedetectOptions as RedetectOptions
    from mpn.runtime.pipeline import Pipeline as Pipeline
    from mpn.runtime.session.propagate import propagate as propagate
    from mpn.runtime.session.propagate import propagate_range as propagate_range
    from mpn.types import StepResult as StepResult

__version__ = "0.2.0"

_LAZY = {
    "CrfOptions": "mpn.runtime.options",
    "FinetuneOptions": "mpn.runtime.options",
    "OsvosOptions": "mpn.runtime.options",
    "Pipeline": "mpn.runtime.pipeline",
    "PipelineOptions": "mpn.runtime.options",
    "RedetectOptions": "mpn.runtime.options",
    "propagate": "mpn.runtime.session.propagate",
    "propagate_range": "mpn.runtime.session.propagate",
    "StepResult": "mpn.types",
}

_RENAMED = {"AdaptOptions": "FinetuneOptions"}

__all__ = [
    "CrfOptions",
    "FinetuneOptions",
    "MpnError",
    "OsvosOptions",
    "Pipeline",
    "PipelineOptions",
    "RedetectOptions",
    "StepResult",
    "__version__",
    "propagate",
    "propagate_range",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _RENAMED:  # an AttributeError would lose its message in "from mpn import"
        raise ImportError(f"{name} is now {_RENAMED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

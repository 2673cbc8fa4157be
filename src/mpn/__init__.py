"""mpn-runtime: deployment-optimised runtime of the Mask Propagation Network.

Importing this package is fast: torch, onnxruntime, OpenCV and PyAV are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpn.errors import MpnError

if TYPE_CHECKING:
    from mpn.runtime.finetune.options import AdaptOptions as AdaptOptions
    from mpn.runtime.pipeline import Pipeline as Pipeline
    from mpn.runtime.pipeline import PipelineOptions as PipelineOptions
    from mpn.runtime.session.propagate import propagate as propagate
    from mpn.types import StepResult as StepResult

__version__ = "0.2.0"

_LAZY = {
    "AdaptOptions": "mpn.runtime.finetune.options",
    "Pipeline": "mpn.runtime.pipeline",
    "PipelineOptions": "mpn.runtime.pipeline",
    "propagate": "mpn.runtime.session.propagate",
    "StepResult": "mpn.types",
}

__all__ = [
    "AdaptOptions",
    "MpnError",
    "Pipeline",
    "PipelineOptions",
    "StepResult",
    "__version__",
    "propagate",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

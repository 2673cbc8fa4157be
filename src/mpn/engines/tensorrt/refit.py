"""Refit the weights of a loaded plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpn.engines.tensorrt.api import TrtApi
from mpn.errors import EngineError

_SHOWN_NAMES = 3


def refit(api: TrtApi, engine: Any, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Refit an engine with new weights, before it has a context.

    Args:
        api: The library.
        engine: ``ICudaEngine`` built with ``BuildOptions.refittable``.
        weights: By the name of the initialiser, with the plan's dtype and number of values. The
            others stay.

    Raises:
        EngineError: If the engine is not refittable, a weight is not in the plan, has another
            dtype or size, or is missing for a consistent set, or the library fails.
    """
    if not engine.refittable:
        raise EngineError(
            "the plan was built without refittable weights: build it with refittable=True"
        )
    refitter = api.check(api.module.Refitter(engine, api.logger), "making a refitter")
    known = set(refitter.get_all_weights())
    unknown = [name for name in weights if name not in known]
    if unknown:
        raise EngineError(
            f"{len(unknown)} weights cannot be refitted in this plan, such as "
            f"{_names(unknown)}: export and build it again"
        )
    kept = []  # the library reads them when it refits, not before
    for name, values in weights.items():
        prototype = refitter.get_weights_prototype(name)
        expected = api.numpy_dtype(prototype.dtype)
        if str(values.dtype) != expected or values.size != prototype.size:
            raise EngineError(
                f"weight '{name}' must be {prototype.size} values of {expected}, "
                f"got {values.size} of {values.dtype}"
            )
        contiguous = np.ascontiguousarray(values)
        kept.append(contiguous)
        api.check(
            refitter.set_named_weights(name, api.module.Weights(contiguous)),
            f"setting weight '{name}'",
        )
    missing = refitter.get_missing_weights()
    if missing:
        raise EngineError(
            f"refitting {len(weights)} weights takes {len(missing)} more that were not given, "
            f"such as {_names(missing)}: give all trained weights"
        )
    api.check(refitter.refit_cuda_engine(), "refitting the weights")
    del kept


def _names(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN_NAMES])

"""Wrapper of torch.onnx.export without log output, with one-line errors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpn._common.text import one_line
from mpn.engines.spec import OPSET
from mpn.errors import ExportError

_SILENCED_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def traced_program(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    what: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Sequence[Mapping[int, Any]] | None = None,
) -> Any:
    """Trace a module into an ONNX program of this package's opset.

    Args:
        module: Module in evaluation mode.
        inputs: Example inputs.
        what: Name for error messages, for example ``"the flow network"``.
        input_names: Input names of the graph, in the order of the examples.
        output_names: Output names of the graph.
        dynamic_shapes: For each input, axis number -> ``torch.export.Dim``; None if all sizes are
            fixed.

    Raises:
        ExportError: If torch cannot trace it.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=None if dynamic_shapes is None else tuple(dynamic_shapes),
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no other common base class
        raise ExportError(
            f"{what} cannot be traced by torch {torch.__version__}: {one_line(error)}"
        ) from error
    if program is None:
        raise ExportError(
            f"torch {torch.__version__} returned no graph: use a torch in [2.9, 2.14)"
        )
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about torchvision, deprecations and opset changes."""
    loggers = [logging.getLogger(name) for name in _SILENCED_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

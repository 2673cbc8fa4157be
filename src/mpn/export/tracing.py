"""Wrapper of torch.onnx.export without log output, with one-line errors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mpn._common.text import one_line
from mpn.engines.spec import OPSET, Role
from mpn.errors import ExportError
from mpn.networks.features import NormalisedRgb

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


class _HasLogits(Protocol):
    def logits(self, image: Tensor) -> Tensor: ...


class _HasMargin(Protocol):
    def margin(self, rgb_prob: Tensor) -> Tensor: ...


class FlowGraph(nn.Module):
    """Flow network: two frames (1, 3, H, W) -> flow_px (1, 2, H, W), (x, y).

    Frames are RGB in 0..255; the flow is in pixels.

    Args:
        network: A flow network; it casts to the dtype of its layers itself, because its
            computations in pixels must stay float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame0: Tensor, frame1: Tensor) -> Tensor:
        """Compute the flow frame 0 -> frame 1, float32."""
        flow_px: Tensor = self.network(frame0, frame1)
        return flow_px.float()


class PropagationGraph(nn.Module):
    """Propagation network: rgb_prob (K, 4 or 5, S, S) -> prob (K, 1, S, S), 0..1.

    Args:
        network: A network with ``margin``, the foreground logit minus the background logit.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rgb_prob: Tensor) -> Tensor:
        """Compute the foreground probability, float32."""
        margin = cast(_HasMargin, self.network).margin(rgb_prob.to(_first_dtype(self.network)))
        # The softmax of two logits is the sigmoid of their difference. onnxruntime's Softmax over
        # channels takes a tenth of the lite network's time on the CPU.
        return torch.sigmoid(margin)


class OsvosGraph(nn.Module):
    """OSVOS: image (1, 3, H, W) -> prob (1, 1, H, W), foreground, 0..1.

    Args:
        network: A network whose ``logits(image)`` are the fused ones, (1, 1, H, W).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Compute the foreground probability, float32."""
        image = image.to(_first_dtype(self.network))
        logits = cast(_HasLogits, self.network).logits(image)
        return torch.sigmoid(logits.float())


class FeaturesGraph(nn.Module):
    """Features network: image (1, 3, H, W) -> features (1, C, H / 8, W / 8).

    The image is RGB in 0..255.

    Args:
        network: A features network; its input is normalised RGB / 255.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.normalised = NormalisedRgb()

    def forward(self, image: Tensor) -> Tensor:
        """Compute the features, float32."""
        features: Tensor = self.network(self.normalised(image))
        return features.float()


_GRAPHS: dict[Role, type[nn.Module]] = {
    "flow": FlowGraph,
    "propagation": PropagationGraph,
    "osvos": OsvosGraph,
    "features": FeaturesGraph,
}


def deployed(role: Role, network: nn.Module) -> nn.Module:
    """Wrap ``network`` for its role, in evaluation mode.

    Raises:
        ExportError: If the role is unknown.
    """
    if role not in _GRAPHS:
        raise ExportError(f"unknown role '{role}': the roles are {', '.join(_GRAPHS)}")
    return _GRAPHS[role](network).eval()


def _first_dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype

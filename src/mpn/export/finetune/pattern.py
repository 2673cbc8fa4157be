"""Activation pattern of a step: active units, and the pixel of each pooling.

ReLU and max pooling have a kink, at which the gradient jumps. Two float32 computations of one
network differ by rounding, so a unit within rounding of its kink may be active in one of them only.
That changes the gradients of all layers before it: by up to a tenth of the largest gradient of a
tensor in the paper-size DeepLab, which has some units there in every image. At one common pattern
the network is smooth, and correct gradients differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mpn.errors import ExportError
from mpn.export.autodiff.backward import dependents
from mpn.export.autodiff.builder import PREFIX
from mpn.types import Float32Array

_RELUS = frozenset({F.relu, torch.relu})
_RELU6S = frozenset({F.relu6, F.hardtanh})
_POOLS = frozenset({F.max_pool2d, torch.max_pool2d})
_KINKS = _RELUS | _RELU6S | _POOLS
_TOP = 6.0
"""Value at which ReLU6 saturates."""
_TINY = 1e-30
"""Lower bound of divisors, for an all-zero tensor."""


def pattern_tensors(model: onnx.ModelProto, trained: Collection[str]) -> tuple[str, ...]:
    """List the tensors that determine the pattern, in the order of the layers.

    These are the outputs of ReLU and ReLU6 and the inputs of max pooling, if they depend on a
    trained tensor: only they affect a gradient.
    """
    nodes = [node for node in model.graph.node if not node.output[0].startswith(PREFIX)]
    active = dependents(nodes, trained)
    found = []
    for node in nodes:
        if node.op_type in ("Relu", "Clip") and node.output[0] in active:
            found.append(node.output[0])
        elif node.op_type == "MaxPool" and node.input[0] in active:
            found.append(node.input[0])
    return tuple(found)


class GivenPattern(TorchFunctionMode):
    """Context in which ReLU and max pooling of PyTorch have the pattern of a graph.

    Args:
        tensors: Values of :func:`pattern_tensors`, in that order.

    Attributes:
        distance: Largest distance from its kink of a unit that PyTorch has on the other side, over
            the largest magnitude of its tensor: rounding, or else the forward passes differ.
        flipped: Number of these units.
    """

    def __init__(self, tensors: Sequence[Float32Array]) -> None:
        super().__init__()
        self._tensors = tensors
        self._used = 0
        self.distance = 0.0
        self.flipped = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of PyTorch; one with a kink gets the next tensor's pattern."""
        kwargs = kwargs or {}
        if func not in _KINKS or not args[0].requires_grad:
            return func(*args, **kwargs)
        value, given = args[0], self._next(args[0])
        if func in _POOLS:
            kwargs["return_indices"] = False
            own = F.max_pool2d(value.detach(), *args[1:], **kwargs)
            kwargs["return_indices"] = True
            _, places = F.max_pool2d(given, *args[1:], **kwargs)
            result = value.flatten(2).gather(2, places.flatten(2)).view_as(places)
            self._note(value, own - result.detach())
            return result
        top = _TOP if func in _RELU6S else float("inf")
        active, was = ((side > 0) & (side < top) for side in (given, value.detach()))
        distance = torch.minimum(value.detach().abs(), (value.detach() - top).abs())
        self._note(value, distance * (active != was))
        return torch.where(active, value, value.detach().clamp(0.0, top))

    def check_complete(self) -> None:
        """Raise ExportError unless each tensor was used."""
        if self._used != len(self._tensors):
            self._differ(f"{self._used} such layers", str(len(self._tensors)))

    def _next(self, value: Tensor) -> Tensor:
        if self._used == len(self._tensors):
            self._differ("more such layers", str(len(self._tensors)))
        given = torch.from_numpy(self._tensors[self._used])
        self._used += 1
        if given.shape != value.shape:
            self._differ(f"the shape {tuple(value.shape)}", str(tuple(given.shape)))
        return given

    def _differ(self, ours: str, graph: str) -> None:
        raise ExportError(f"ReLU or max pooling: PyTorch has {ours}, the graph {graph}")

    def _note(self, value: Tensor, distance: Tensor) -> None:
        self.flipped += int(torch.count_nonzero(distance))
        largest = max(float(value.detach().abs().max()), _TINY)
        self.distance = max(self.distance, float(distance.max()) / largest)

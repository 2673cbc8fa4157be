"""Engine of a PyTorch network, so that validation runs the runtime's pipeline."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mpn._common.closeable import Closeable
from mpn.engines.spec import EngineSpec
from mpn.errors import EngineError
from mpn.types import Float32Array


class TorchEngine(Closeable):
    """A PyTorch network with the tensors of an engine of its role.

    Args:
        network: Switched to eval mode.
        spec: Its interface, of one output.
    """

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        self._network: nn.Module | None = network.eval()
        parameter = next(network.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        self._spec = spec

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""
        return self._spec

    @property
    def backend(self) -> str:
        """Always ``"torch"``."""
        return "torch"

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Run the network; see :meth:`mpn.engines.base.Engine.run`."""
        if self._network is None:
            raise EngineError(f"the {self._spec.role} engine is closed")
        self._spec.check_inputs(inputs)
        tensors = [torch.from_numpy(inputs[x.name]).to(self._device) for x in self._spec.inputs]
        output = self.forward(self._network, *tensors).float()
        return {self._spec.outputs[0].name: np.ascontiguousarray(output.cpu().numpy())}

    @abstractmethod
    def forward(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        """Compute the output of an engine of this role from ``inputs``."""

    def close(self) -> None:
        """Release the network."""
        self._network = None

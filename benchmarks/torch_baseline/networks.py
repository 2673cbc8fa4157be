"""Build the PyTorch networks of ``compare.py``.

FlowNet 2.0 computes its correlation by slices, 441 products in sequence, as public ports without
CUDA do. All other modules are those of this package, which are plain PyTorch: BatchNorm is a
separate layer, and activations work in place, as in public code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.export import NETWORKS, fixed_weights
from mpn.engines.directory.entries import Preprocessing
from mpn.engines.spec import EngineSpec, Role
from mpn.errors import CheckpointError
from mpn.export.tracing import deployed
from mpn.networks.flownet2 import FlowNet2, FlowNet2Config
from mpn.networks.flownet2_members import DISPLACEMENT_STEP_PX, MAX_DISPLACEMENT_PX, FlowNetC
from mpn.networks.layers import run_layer
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationConfig, PropagationNet
from mpn.runtime.host.ops import crop_resize_pack
from mpn.runtime.host.preprocess import one_hot, osvos_input
from mpn.runtime.host.roi import roi_from_prob
from mpn.synthetic.clip import SyntheticFrame

_LEAKY_SLOPE = 0.1
_ENTRY_AND_EXIT = 4
"""Numbered blocks of the Xception outside the middle flow: 1, 2, 3 and 20."""


@dataclass(frozen=True)
class NetworkShapes:
    """Hold the configurations of the networks to build.

    Attributes:
        propagation: Configuration of the propagation network.
        flow: Configuration of the flow network; None for OpenCV DIS.
        osvos: Configuration of OSVOS; None for no OSVOS.
    """

    propagation: PropagationConfig
    flow: FlowNet2Config | None = None
    osvos: OsvosConfig | None = None


PAPER = NetworkShapes(PropagationConfig(), FlowNet2Config(), OsvosConfig())
TINY = NetworkShapes(
    PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1),
    FlowNet2Config("FlowNet2S", width=0.125),
    OsvosConfig(width=0.125),
)
"""Networks for tests of the command, without meaningful figures."""


class SlicedFlowNetC(FlowNetC):
    """Compute the correlation of FlowNetC without a custom kernel."""

    def pyramid(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`mpn.networks.flownet2_members.FlowNetC.pyramid`."""
        features2 = run_layer(self.conv2, run_layer(self.conv1, frames[:, :3]))
        features3 = run_layer(self.conv3, features2)
        other3 = run_layer(self.conv3, run_layer(self.conv2, run_layer(self.conv1, frames[:, 3:])))
        matches = F.leaky_relu(correlation_by_slices(features3, other3), _LEAKY_SLOPE)
        redirected = run_layer(self.conv_redir, features3)
        merged = run_layer(self.conv3_1, torch.cat((redirected, matches), dim=1))
        return self._decode(features2, merged)


def correlation_by_slices(features0: Tensor, features1: Tensor) -> Tensor:
    """Compute the correlation of FlowNet 2.0, one displacement at a time.

    Args:
        features0: (B, C, H, W) of frame 0.
        features1: (B, C, H, W) of frame 1.

    Returns:
        (B, 441, H, W).
    """
    height, width = features0.shape[2:]
    padded = F.pad(features1, (MAX_DISPLACEMENT_PX,) * 4)
    shifts = range(0, 2 * MAX_DISPLACEMENT_PX + 1, DISPLACEMENT_STEP_PX)
    return torch.cat(
        [
            (features0 * padded[:, :, y : y + height, x : x + width]).mean(dim=1, keepdim=True)
            for y in shifts
            for x in shifts
        ],
        dim=1,
    )


def seeded_networks(shapes: NetworkShapes) -> dict[Role, nn.Module]:
    """Return networks with the fixed random weights of ``speed/export.py``."""
    networks: dict[Role, nn.Module] = {
        "propagation": fixed_weights(PropagationNet(shapes.propagation), NETWORKS["propagation"][1])
    }
    if shapes.flow is not None:
        networks["flow"] = fixed_weights(FlowNet2(shapes.flow), NETWORKS["flow"][1])
    if shapes.osvos is not None:
        networks["osvos"] = fixed_weights(OsvosVgg(shapes.osvos), NETWORKS["osvos"][1])
    return networks


@torch.inference_mode()
def centre_outputs(
    networks: Mapping[Role, nn.Module], frame: SyntheticFrame, roi_size: int
) -> None:
    """Change the last layer of random networks so that masks depend on all weights.

    Without the change all pixels are foreground with odds of e^16 and more. The bias is shifted
    until half of the pixels are foreground. The scale is lowered because two certain networks that
    disagree average to 0.5 plus or minus rounding, and the threshold would compare rounding.

    Args:
        networks: Changed in place.
        frame: Input: OSVOS gets the frame, the propagation network the crop of object 1.
        roi_size: Side of the propagation crop.
    """
    chosen = Preprocessing()
    prob = one_hot(frame.labels, [1])
    roi = roi_from_prob(prob[0], threshold=0.5, margin_frac=0.15, margin_px_min=16)
    crop = crop_resize_pack(
        frame.rgb,
        prob,
        [roi],
        size=roi_size,
        mean=chosen.propagation.mean_rgb,
        std=chosen.propagation.std_rgb,
    )
    logits = networks["propagation"](torch.from_numpy(crop))
    last = cast(nn.Conv2d, networks["propagation"].get_submodule("decoder.last_conv.8"))
    _centre(last, logits[:, 1] - logits[:, 0])
    if "osvos" in networks:
        image = osvos_input(
            frame.rgb,
            (frame.rgb.shape[0], frame.rgb.shape[1]),
            channel_order=chosen.osvos.channel_order,
            mean=chosen.osvos.mean,
        )
        osvos = cast(OsvosVgg, networks["osvos"])
        _centre(osvos.fuse, osvos.logits(torch.from_numpy(image)))


def _centre(last: nn.Conv2d, margin: Tensor) -> None:
    """Shift and scale log-odds to a median of 0 and a deviation of 1 to 2.

    Args:
        last: Layer of one or two classes, changed in place.
        margin: Its log-odds before the change.
    """
    gain = 2.0 ** -math.floor(math.log2(float(margin.std())))  # exact in float32
    last.weight *= gain
    cast(Tensor, last.bias).mul_(gain)
    # Rounded: the median depends on the number of threads in the last bits.
    cast(Tensor, last.bias)[-1] -= round(float(margin.median()) * gain, 1)


def use_public_forms(networks: Mapping[Role, nn.Module]) -> None:
    """Use the sliced correlation and activations in place; the outputs stay the same.

    Args:
        networks: Changed in place.
    """
    flow = networks.get("flow")
    if isinstance(flow, FlowNet2) and hasattr(flow, "flownetc"):
        sliced = SlicedFlowNetC(flow.config.width)
        sliced.load_state_dict(flow.flownetc.state_dict())
        flow.flownetc = sliced.eval()
    for network in networks.values():
        if isinstance(network, PropagationNet) and not network.config.residual_relu:
            continue  # its blocks need the input that their first ReLU would overwrite
        for layer in network.modules():
            if isinstance(layer, nn.ReLU | nn.LeakyReLU):
                layer.inplace = True


def propagation_from_graph(path: Path) -> PropagationNet:
    """Load the propagation network of an engine directory into PyTorch.

    The export folds each BatchNorm into its convolution. Here the convolutions get the folded
    weights, and the BatchNorms get the folded biases and a variance of 1.

    Args:
        path: ``propagation.onnx`` with named weights, as ``mpn export`` writes it.

    Raises:
        CheckpointError: If the weights are not those of such a network at output stride 16.
    """
    found = {
        tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        for tensor in onnx.load(path).graph.initializer
    }
    found = {k: v.float() if v.is_floating_point() else v for k, v in found.items()}
    try:
        network = PropagationNet(_config_from_weights(found))
        expected = network.state_dict()
        convolution = ""
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                convolution = name
                for key in [key for key in expected if key.startswith(f"{name}.")]:
                    expected[key] = found[key]
            elif isinstance(layer, nn.BatchNorm2d):  # always follows its convolution
                expected[f"{name}.running_var"].fill_(1 - layer.eps)
                expected[f"{name}.bias"] = found[f"{convolution}.bias"]
        if network.config.prior_skip:
            expected["prior_gain"] = found["prior_gain"]
        network.load_state_dict(expected, strict=True)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not have the weights of a DeepLab v3+ with Aligned Xception or "
            f"EfficientNet-Lite ({error}): use an engine directory that mpn export wrote"
        ) from error
    return network.eval()


def gflop(role: Role, network: nn.Module, spec: EngineSpec) -> float:
    """Return the floating-point operations of one run on one object, in 10^9.

    Counts convolutions and matrix products, two operations per multiply-add. FlowNet 2.0's sliced
    correlation is not counted.
    """
    shapes = [[1 if isinstance(size, str) else size for size in x.shape] for x in spec.inputs]
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    module = deployed(role, network)
    state = {name: value.to("meta") for name, value in module.state_dict().items()}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.func.functional_call(module, state, tuple(inputs))
    return round(counter.get_total_flops() / 1e9, 3)


def _config_from_weights(found: Mapping[str, Tensor]) -> PropagationConfig:
    if "backbone.stem.0.weight" in found:
        return _efficientnet_config(found)
    blocks = {match[1] for name in found if (match := re.match(r"backbone\.(block\d+)\.", name))}
    plain = PropagationConfig()
    whole = PropagationNet(PropagationConfig(middle_blocks=1))
    widest = "backbone.conv5.pointwise.weight"
    head = "aspp.aspp1.atrous_conv.weight"
    reference = whole.state_dict()
    return PropagationConfig(
        in_channels=found["backbone.conv1.weight"].shape[1],
        classes=found["decoder.last_conv.8.weight"].shape[0],
        output_stride=plain.output_stride,
        width=found[widest].shape[0] / reference[widest].shape[0],
        head_width=found[head].shape[0] / reference[head].shape[0],
        middle_blocks=len(blocks) - _ENTRY_AND_EXIT,
        prior_skip="prior_gain" in found,
    )


def _efficientnet_config(found: Mapping[str, Tensor]) -> PropagationConfig:
    shapes = {name: value.shape for name, value in found.items()}
    stem = "backbone.stem.0.weight"
    for backbone in ("efficientnet-lite0", "efficientnet-lite2"):
        config = PropagationConfig(
            in_channels=shapes[stem][1], backbone=backbone, prior_skip="prior_gain" in found
        )
        reference = PropagationNet(config).state_dict()
        trunk = {k: v.shape for k, v in reference.items() if k.endswith("_conv.weight")}
        if any(shapes.get(k) != v for k, v in trunk.items() if k.startswith("backbone.")):
            continue
        head = "aspp.aspp1.atrous_conv.weight"
        return replace(config, head_width=shapes[head][0] / reference[head].shape[0])
    raise KeyError(stem)

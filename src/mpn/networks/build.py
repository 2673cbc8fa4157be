"""Networks by role and variant, built from the entries of checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpn.engines.spec import ROLES, Role
from mpn.errors import CheckpointError, InputError, MpnError
from mpn.networks.deeplab import (
    FIRST_LAYER,
    HEAD_LAYER,
    DeepLabConfig,
    DeepLabXception,
    with_fourth_channel,
)
from mpn.networks.flownet2 import FLOW_VARIANTS, FlowNet2, FlowNet2Config
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.recognise import DEEPLAB_KIND, FLOW_MEMBERS, members_present

VARIANTS: Mapping[Role, tuple[str, ...]] = {
    "flow": FLOW_VARIANTS,
    "propagation": ("DeepLabXception",),
    "osvos": ("OsvosVgg",),
}
"""Networks of each role."""

OWN_KIND = "mpn-checkpoint"
"""Value of ``format`` in the project's own checkpoints."""

_CLASSES: Mapping[Role, tuple[Any, Any]] = {
    "flow": (FlowNet2Config, FlowNet2),
    "propagation": (DeepLabConfig, DeepLabXception),
    "osvos": (OsvosConfig, OsvosVgg),
}
_OPTIONAL_SUFFIX = "num_batches_tracked"
"""Suffix of a counter that inference does not use; files of torch < 0.4.1 lack it."""
_SHOWN = 3


@dataclass(frozen=True)
class CheckpointSource:
    """Source file of weights.

    Attributes:
        path: Path as given.
        sha256: 64 hexadecimal digits.
        kind: ``"mpn-checkpoint"``, or the public repository whose layout it has.
    """

    path: Path
    sha256: str
    kind: str


@dataclass(frozen=True)
class RoleWeights:
    """Shape and weights of one network.

    Attributes:
        role: Role of the network.
        variant: One of ``VARIANTS[role]``.
        config: Fields of its config class, as JSON types.
        state_dict: Tensors by public key, float32 on the CPU. They are shared: do not change them.
        source: The source file; None for a network in memory.
    """

    role: Role
    variant: str
    config: Mapping[str, Any]
    state_dict: Mapping[str, Tensor]
    source: CheckpointSource | None = None

    def __repr__(self) -> str:
        return f"RoleWeights({self.role}, {self.variant}, {len(self.state_dict)} tensors)"

    @classmethod
    def from_network(cls, role: Role, network: nn.Module) -> RoleWeights:
        """Copy the weights of a network of this package.

        Raises:
            CheckpointError: If the network has another role.
        """
        if role not in ROLES:
            raise CheckpointError(f"unknown role '{role}': the roles are {', '.join(ROLES)}")
        network_class = _CLASSES[role][1]
        if not isinstance(network, network_class):
            raise CheckpointError(
                f"the {role} network must be a {network_class.__name__}, "
                f"got a {type(network).__name__}"
            )
        config = asdict(network.config)
        state_dict = {
            key: value.detach().to("cpu", copy=True).contiguous()
            for key, value in network.state_dict().items()
        }
        return cls(role, _variant(role, config), config, state_dict)


def build_network(weights: RoleWeights) -> nn.Module:
    """Build a network with these weights, in evaluation mode.

    Raises:
        CheckpointError: If the weights do not fit the network that their config describes.
    """
    network = empty_network(weights.role, weights.variant, weights.config)
    problem = misfit(network, weights.state_dict)
    if problem:
        raise CheckpointError(f"the weights do not fit {weights.variant}: {problem}")
    network = network.to_empty(device="cpu")
    network.load_state_dict(weights.state_dict, strict=True)
    return network.eval()


def empty_network(role: Role, variant: str, config: Mapping[str, Any]) -> nn.Module:
    """Build a network without storage (on the meta device), to compare shapes.

    Raises:
        CheckpointError: If there is no such variant, or the config is of another variant.
    """
    if variant not in VARIANTS[role]:
        raise CheckpointError(
            f"unknown {role} network '{variant}' (known: {', '.join(VARIANTS[role])}): it may "
            "need a newer mpn-runtime"
        )
    config_class, network_class = _CLASSES[role]
    known = {item.name for item in fields(config_class)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise CheckpointError(
            f"unknown config of {variant}: {shortened(unknown)} (known: "
            f"{', '.join(sorted(known))}): it may need a newer mpn-runtime"
        )
    try:
        shape = config_class(**config)
        with torch.device("meta"):
            network: nn.Module = network_class(shape)
    except (MpnError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"the config of {variant} cannot be used: {error}") from error
    if _variant(role, config) != variant:
        raise CheckpointError(f"the config is of {_variant(role, config)}, the entry {variant}")
    return network


def fitted_state_dict(network: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert to float32, and add the batch counters that old files lack.

    Args:
        network: Network of :func:`empty_network`.
        state_dict: Any tensors; those that do not fit are kept, for :func:`misfit` to report.
    """
    fitted = {
        key: value.float() if value.is_floating_point() else value
        for key, value in state_dict.items()
    }
    for key in network.state_dict():
        if key.endswith(_OPTIONAL_SUFFIX):
            fitted.setdefault(key, torch.zeros((), dtype=torch.int64))
    return fitted


def misfit(network: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """Describe the first differences from the network's keys and shapes.

    Returns ``""`` if there is none.

    Args:
        network: Network of :func:`empty_network`.
        state_dict: Result of :func:`fitted_state_dict`.
    """
    expected = network.state_dict()
    missing = [key for key in expected if key not in state_dict]
    surplus = [key for key in state_dict if key not in expected]
    wrong = [
        f"'{key}' is {_shown(state_dict[key])} instead of {_shown(value)}"
        for key, value in expected.items()
        if key in state_dict and _shown(state_dict[key]) != _shown(value)
    ]
    parts = []
    if missing:
        parts.append(f"missing {shortened(missing)}")
    if surplus:
        parts.append(f"surplus {shortened(surplus)}")
    if wrong:
        parts.append(wrong[0] + (f" and {len(wrong) - 1} more shapes differ" * (len(wrong) > 1)))
    return "; ".join(parts)


def shortened(keys: Collection[str]) -> str:
    """Format the first three keys in quotes, and the number of the others."""
    shown = ", ".join(f"'{key}'" for key in list(keys)[:_SHOWN])
    return shown + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _variant(role: Role, config: Mapping[str, Any]) -> str:
    """Return the variant of a config; only flow has more than one."""
    return str(config.get("variant", "FlowNet2")) if role == "flow" else VARIANTS[role][0]


def _shown(tensor: Tensor) -> str:
    kind = "" if tensor.dtype in (torch.float32, torch.int64) else f" {tensor.dtype}"
    return f"{tuple(tensor.shape)}{kind}"


PROPAGATION_CHANNELS = 4
"""Number of input channels: RGB and the warped probability."""
COLOUR_CHANNELS = 3
PROPAGATION_CLASSES = 2
"""Number of classes: background and object."""


def check_expected_role(roles: Mapping[Role, RoleWeights], expected: str, path: Path) -> None:
    """Raise CheckpointError unless there are weights of the role.

    Raises InputError if there is no such role.
    """
    if expected not in ROLES:
        raise InputError(f"unknown role '{expected}': the roles are {', '.join(ROLES)}")
    if expected not in roles:
        raise CheckpointError(
            f"{path} holds {_held(roles)}, but weights of the role {expected} are expected: give "
            f"a checkpoint of {' or '.join(VARIANTS[expected])}"
        )


def check_expected_variant(roles: Mapping[Role, RoleWeights], expected: str, path: Path) -> None:
    """Raise CheckpointError unless there are weights of the network.

    Raises InputError if there is no such network.
    """
    role = next((role for role, variants in VARIANTS.items() if expected in variants), None)
    if role is None:
        known = ", ".join(variant for variants in VARIANTS.values() for variant in variants)
        raise InputError(f"unknown network '{expected}': the networks are {known}")
    weights = roles.get(role)
    if weights is None:
        raise CheckpointError(f"{path} holds {_held(roles)}, but {expected} is expected")
    if weights.variant != expected:
        network = empty_network(role, expected, {"variant": expected})
        problem = misfit(network, fitted_state_dict(network, weights.state_dict))
        raise CheckpointError(
            f"{path} holds {weights.variant}, but {expected} is expected ({problem}): give a "
            f"file of {expected}, or choose {weights.variant}"
        )


def fitted_weights(
    weights: RoleWeights, path: Path, init_fourth_channel: str | None
) -> RoleWeights:
    """Convert weights to float32, complete them, and check that they fit.

    Args:
        weights: The weights as read.
        path: Path for error messages.
        init_fourth_channel: See :func:`mpn.networks.deeplab.with_fourth_channel`.

    Raises:
        CheckpointError: If they do not fit, or propagation weights lack the fourth channel or do
            not have two classes.
    """
    if weights.role == "propagation":
        weights = _with_propagation_ends(weights, path, init_fourth_channel)
    try:
        network = empty_network(weights.role, weights.variant, weights.config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    state_dict = fitted_state_dict(network, weights.state_dict)
    problem = misfit(network, state_dict)
    if problem:
        raise CheckpointError(
            f"{path} does not hold the weights of {weights.variant}: {problem}: {_advice(weights)}"
        )
    return replace(weights, state_dict=state_dict)


def _with_propagation_ends(
    weights: RoleWeights, path: Path, init_fourth_channel: str | None
) -> RoleWeights:
    channels = weights.config.get("in_channels", PROPAGATION_CHANNELS)
    classes = weights.config.get("classes", PROPAGATION_CLASSES)
    if classes != PROPAGATION_CLASSES:
        raise CheckpointError(
            f"{path} has {classes} classes ('{HEAD_LAYER}'), but needs {PROPAGATION_CLASSES}, "
            f"background and object: give the network a {PROPAGATION_CLASSES}-class head "
            "and fine-tune it first"
        )
    if channels == PROPAGATION_CHANNELS:
        return weights
    if channels != COLOUR_CHANNELS:
        raise CheckpointError(
            f"{path} has {channels} input channels ('{FIRST_LAYER}'), but needs "
            f"{PROPAGATION_CHANNELS}, RGB and the warped probability: train the network with these"
        )
    if init_fourth_channel is None:
        raise CheckpointError(
            f"{path} has 3 input channels ('{FIRST_LAYER}'), but needs {PROPAGATION_CHANNELS}, "
            "RGB and the warped probability: add --init-fourth-channel zero, mean or normal, "
            "and fine-tune the network"
        )
    try:
        extended = with_fourth_channel(weights.state_dict, init_fourth_channel)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    config = {**weights.config, "in_channels": PROPAGATION_CHANNELS}
    return replace(weights, config=config, state_dict=extended)


def _held(roles: Mapping[Role, RoleWeights]) -> str:
    return ", ".join(f"{weights.variant} (role {role})" for role, weights in roles.items())


def _advice(weights: RoleWeights) -> str:
    kind = OWN_KIND if weights.source is None else weights.source.kind
    if kind == DEEPLAB_KIND:
        return (
            "public files are recognised at their published size only, a network of another size "
            "must come from mpn train, which stores the size in the file"
        )
    if kind != OWN_KIND:
        return "take the file as its authors published it"
    for variant, members in FLOW_MEMBERS.items():
        has_members = members_present(weights.state_dict) == members
        if weights.role == "flow" and variant != weights.variant and has_members:
            return f"these look like {variant} weights, save them as that variant"
    return "save the network again together with its config, or take an undamaged copy"

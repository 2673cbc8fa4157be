"""Networks by role and variant, built from the entries of checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpn._common.text import one_line
from mpn.engines.spec import ROLES, Role
from mpn.errors import CheckpointError, MpnError
from mpn.networks.features import (
    FEATURES_VARIANTS,
    FeaturesConfig,
    FeaturesNet,
    features_variant,
)
from mpn.networks.flownet2 import FLOW_VARIANTS, FlowNet2, FlowNet2Config
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import (
    PROPAGATION_VARIANTS,
    PropagationConfig,
    PropagationNet,
    propagation_variant,
)

VARIANTS: Mapping[Role, tuple[str, ...]] = {
    "flow": FLOW_VARIANTS,
    "propagation": PROPAGATION_VARIANTS,
    "osvos": ("OsvosVgg",),
    "features": FEATURES_VARIANTS,
}
"""Networks of each role."""

OWN_KIND = "mpn-checkpoint"
"""Value of ``format`` in the project's own checkpoints."""

_CLASSES: Mapping[Role, tuple[Any, Any]] = {
    "flow": (FlowNet2Config, FlowNet2),
    "propagation": (PropagationConfig, PropagationNet),
    "osvos": (OsvosConfig, OsvosVgg),
    "features": (FeaturesConfig, FeaturesNet),
}
_OPTIONAL_SUFFIX = "num_batches_tracked"
"""Suffix of a counter that inference does not use; files of torch < 0.4.1 lack it."""
_SHOWN = 3
_SHOWN_LENGTH = 100


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
        raise CheckpointError(
            f"the config of {variant} cannot be used: {one_line(error)}"
        ) from error
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
    shown = ", ".join(f"'{one_line(key, _SHOWN_LENGTH)}'" for key in list(keys)[:_SHOWN])
    return shown + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _variant(role: Role, config: Mapping[str, Any]) -> str:
    """Return the variant of a config."""
    if role == "flow":
        return str(config.get("variant", "FlowNet2"))
    if role == "features":
        return features_variant(config)
    return propagation_variant(config) if role == "propagation" else VARIANTS[role][0]


def _shown(tensor: Tensor) -> str:
    kind = "" if tensor.dtype in (torch.float32, torch.int64) else f" {tensor.dtype}"
    return f"{tuple(tensor.shape)}{kind}"

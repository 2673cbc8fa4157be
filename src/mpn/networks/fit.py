"""Compare a checkpoint with the required role, variant, channels and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mpn.engines.spec import ROLES, Role
from mpn.errors import CheckpointError, InputError
from mpn.networks.build import (
    OWN_KIND,
    VARIANTS,
    RoleWeights,
    empty_network,
    fitted_state_dict,
    misfit,
)
from mpn.networks.propagation import (
    COLOUR_CHANNELS,
    HEAD_LAYER,
    first_layer,
    with_more_channels,
)
from mpn.networks.recognise import DEEPLAB_KIND, FLOW_MEMBERS, members_present

PROPAGATION_CHANNELS = 4
"""Number of input channels: RGB and the warped probability."""

_WITH_SCORE = PROPAGATION_CHANNELS + 1
"""Number with the score of a target model."""

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
            f"a checkpoint of a network of that role, such as {VARIANTS[expected][0]}"
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
        problem = ""
        if role == "flow":
            network = empty_network(role, expected, {"variant": expected})
            problem = f" ({misfit(network, fitted_state_dict(network, weights.state_dict))})"
        raise CheckpointError(
            f"{path} holds {weights.variant}, but {expected} is expected{problem}: give a "
            f"file of {expected}, or choose {weights.variant}"
        )


def fitted_weights(
    weights: RoleWeights, path: Path, init_fourth_channel: str | None
) -> RoleWeights:
    """Convert weights to float32, complete them, and check that they fit.

    Args:
        weights: The weights as read.
        path: Path for error messages.
        init_fourth_channel: See :func:`mpn.networks.propagation.with_more_channels`.

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
    if channels in (PROPAGATION_CHANNELS, _WITH_SCORE):
        return weights
    layer = first_layer(weights.config.get("backbone", "xception"))
    if channels != COLOUR_CHANNELS:
        raise CheckpointError(
            f"{path} has {channels} input channels ('{layer}'), but needs {PROPAGATION_CHANNELS}, "
            "RGB and the warped probability: train the network with these"
        )
    if init_fourth_channel is None:
        raise CheckpointError(
            f"{path} has 3 input channels ('{layer}'), but needs {PROPAGATION_CHANNELS}, "
            "RGB and the warped probability: add --init-fourth-channel zero, mean or normal, "
            "and fine-tune the network"
        )
    try:
        extended = with_more_channels(
            weights.state_dict, layer, PROPAGATION_CHANNELS, init_fourth_channel
        )
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

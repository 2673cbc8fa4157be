"""Weights to start from, put into a network that they must fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from mpn.errors import TrainingError


def load_start(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    may_lack: Collection[str] = (),
    advice: str,
) -> None:
    """Load a state dict, strict but for named keys.

    Args:
        network: Changed in place.
        state: The weights.
        may_lack: Keys of the network that may be missing, and keep their values.
        advice: What to ask for instead, as the end of a sentence.

    Raises:
        TrainingError: If the weights do not fit.
    """
    own = network.state_dict()
    unfit = [k for k in state if k not in own or own[k].shape != state[k].shape]
    missing = [k for k in own if k not in state and k not in may_lack]
    if unfit or missing:
        raise TrainingError(
            f"the weights to start from do not fit the network at '{(unfit + missing)[0]}' "
            f"({len(unfit)} surplus or of another shape, {len(missing)} missing): ask for {advice}"
        )
    network.load_state_dict(state, strict=False)

"""Files of a run's folder: the recipe as used, and the checkpoint."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpn import __version__
from mpn._common.files import is_nonempty_file, output_errors, write_text_atomically
from mpn._common.locks import FolderLock
from mpn.engines.spec import Role
from mpn.errors import CheckpointError, TrainingError
from mpn.networks.checkpoint import load_checkpoint, read_torch_file, save_checkpoint
from mpn.networks.imagenet import imagenet_backbone, imagenet_trunk, vgg16_stages
from mpn.networks.osvos import OsvosConfig, OsvosVgg, five_branch_from_four
from mpn.networks.propagation import (
    FourthChannel,
    PropagationConfig,
    PropagationNet,
    first_layer,
    propagation_variant,
    with_more_channels,
)
from mpn.networks.recognise import unwrapped_state_dict
from mpn.training.osvos.samples import INPUT_SCALE, init_weights, weights_for_larger_input
from mpn.training.processes import is_first_process
from mpn.training.recipe_file import toml_from_recipe

RECIPE_FILE = "recipe.toml"
_OF_THE_MACHINE = frozenset(
    f"training.{name}"
    for name in ("threads", "workers", "device", "save_every_s", "log_every", "tensorboard")
) | {"features_cache"}
"""Options that do not change the weights, or only their last digits."""


def keep_recipe(recipe: Any, role: str, out: Path, *, resume: bool) -> tuple[str, ...]:
    """Write ``out/recipe.toml``, which ``--config`` accepts.

    Args:
        recipe: The recipe with all its options.
        role: Network it trains.
        out: Folder of the run; created if missing.
        resume: Whether the folder may already hold a run.

    Returns:
        Differences from the previous recipe, as ``"training.steps: 6 -> 12"``, without options of
        the machine.

    Raises:
        TrainingError: If the folder holds a run and ``resume`` is not given.
        OutputError: If it cannot be written.
    """
    path = out / RECIPE_FILE
    if is_nonempty_file(out / "last.pth") and not resume:
        raise TrainingError(f"{out} already holds a training run: add --resume, or choose another")
    text = toml_from_recipe(recipe, role)
    before = _earlier_recipe(path)
    now = _flat(tomllib.loads(text))
    with output_errors(path):
        out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text, durable=True)
    if not before:
        return ()
    keys = sorted((before.keys() | now.keys()) - _OF_THE_MACHINE)
    return tuple(
        f"{key}: {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
        for key in keys
        if before.get(key) != now.get(key)
    )


def _earlier_recipe(path: Path) -> dict[str, Any]:
    if not is_nonempty_file(path):
        return {}
    try:
        return _flat(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read as the recipe of the run: {error}; remove it to continue with "
            "the options given now"
        ) from error


@contextmanager
def open_run(
    recipe: Any, role: str, out: Path, *, resume: bool, notice: Callable[[str], None]
) -> Iterator[None]:
    """Lock the folder of a run, and call ``notice`` with changes of its recipe.

    Only the first process does. The lock ends with the block.

    Raises:
        OutputError: If another training writes to the folder.
    """
    if not is_first_process():
        yield
        return
    with FolderLock(out):
        for change in keep_recipe(recipe, role, out, resume=resume):
            notice(f"changed since the run began: {change}")
        yield


def write_checkpoint(
    network: nn.Module, recipe: Any, role: Role, out: Path, data: Mapping[str, Any]
) -> Path:
    """Write ``out/<role>.pth`` with its provenance in the first process.

    Args:
        network: Network with the weights to write.
        recipe: The recipe.
        role: Role of the network.
        out: Folder of the run.
        data: Description of the training data.

    Returns:
        Path of the checkpoint, in every process.
    """
    path = out / f"{role}.pth"
    if is_first_process():
        save_checkpoint(path, {role: network}, provenance=provenance(recipe, data))
    return path


def provenance(recipe: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the origin of a checkpoint as JSON types, without paths.

    Args:
        recipe: The recipe.
        data: Description of the training data.
    """
    return {
        "tool": f"mpn-runtime {__version__}",
        "recipe": _without_paths(asdict(recipe)),
        "data": dict(data),
    }


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{where}{key}"
        out |= _flat(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return out


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_paths(v) for k, v in value.items() if not isinstance(v, Path)}
    if isinstance(value, list | tuple):
        return [_without_paths(v) for v in value if not isinstance(v, Path)]
    return value


def propagation_start(
    path: Path, config: PropagationConfig, *, fourth: FourthChannel | None, seed: int
) -> dict[str, Tensor]:
    """Load initial weights of the propagation network from a file.

    Args:
        path: A checkpoint in the project's format, a public DeepLab v3+ Xception, or an ImageNet
            network. Of the last, the backbone is used; the rest is random.
        config: Shape of the network to train.
        fourth: How to initialise the input channels that the file lacks.
        seed: Seed of the random weights.

    Raises:
        CheckpointError: If the file cannot be used, or has another backbone or head.
        TrainingError: If ImageNet's backbone does not fit the network, or the initialisation of
            missing input channels is not given.
    """
    state = _imagenet_state(path, config.backbone)
    layer = first_layer(config.backbone)
    if state is None:
        checkpoint = load_checkpoint(path, expected_role="propagation", init_fourth_channel=fourth)
        weights = checkpoint.roles["propagation"]
        wanted = propagation_variant(asdict(config))
        if weights.variant != wanted:
            raise CheckpointError(
                f"{path} holds {weights.variant}, but {wanted} is to be trained: choose its "
                "--backbone and --head, or start from another file"
            )
        start = dict(weights.state_dict)
    else:
        backbone = imagenet_backbone(state, config.backbone)
        start = {f"backbone.{key}": value for key, value in backbone.items()}
    missing = config.in_channels - start[layer].shape[1]
    if missing > 0:
        if fourth is None:
            raise TrainingError(
                f"{path} lacks {missing} of {config.in_channels} input channels: initialise them "
                "with --init-fourth-channel zero (or mean, normal)"
            )
        start = with_more_channels(start, layer, config.in_channels, fourth)
    if state is None:
        return start
    return _completed(PropagationNet, config, start, path, seed)


def osvos_start(path: Path, config: OsvosConfig, *, seed: int) -> dict[str, Tensor]:
    """Load initial weights of OSVOS from a file, for images of 0..255 minus mean.

    Args:
        path: An OSVOS checkpoint in the project's or the public format, or torchvision's VGG16,
            whose layers become the trunk; side branches and fusion are random.
        config: Shape of the network to train.
        seed: Seed of the random weights.

    Raises:
        CheckpointError: If the file cannot be used.
        TrainingError: If ImageNet's trunk does not fit the network.
    """
    state = _imagenet_state(path, "vgg16")
    if state is None:
        weights = load_checkpoint(path, expected_role="osvos").roles["osvos"]
        if weights.config.get("branches") == 4 and config.branches == 5:
            return five_branch_from_four(weights.state_dict, upsample=config.upsample)
        return dict(weights.state_dict)

    def drawn(config: OsvosConfig) -> OsvosVgg:
        network = OsvosVgg(config)
        init_weights(network)  # for inputs of size 1, as in training
        network.load_state_dict(weights_for_larger_input(network.state_dict(), INPUT_SCALE))
        return network

    return _completed(drawn, config, vgg16_stages(state), path, seed)


def _imagenet_state(path: Path, expected: str) -> dict[str, Tensor] | None:
    """Load the state dict of an ImageNet network; None for any other file."""
    content = read_torch_file(path)
    try:
        state = unwrapped_state_dict(content, path)
    except CheckpointError:
        return None  # the project's format, or an error that load_checkpoint explains better
    found = imagenet_trunk(state)
    if found is not None and found != expected:
        raise CheckpointError(f"{path} is ImageNet's {found}, but {expected} is needed")
    return state if found else None


def _completed(
    draw: Callable[..., nn.Module],
    config: PropagationConfig | OsvosConfig,
    trunk: Mapping[str, Tensor],
    path: Path,
    seed: int,
) -> dict[str, Tensor]:
    """Complete the trunk's tensors with random ones to a whole state dict."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = draw(config).state_dict()
    unfit = [key for key, value in trunk.items() if key in own and own[key].shape != value.shape]
    if unfit:
        raise TrainingError(
            f"{path} is of width 1, the network to train is not ('{unfit[0]}' must be "
            f"{tuple(own[unfit[0]].shape)}): train it at width 1 (--width 1, --recipe paper)"
        )
    return own | {key: value for key, value in trunk.items() if key in own}


def load_start(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    may_lack: Collection[str] = (),
    advice: str,
) -> None:
    """Load a state dict strictly, except for named keys.

    Args:
        network: Changed in place.
        state: The weights.
        may_lack: Keys of the network that may be missing, and then keep their values.
        advice: Alternative for the user, as the end of a sentence.

    Raises:
        TrainingError: If the weights do not fit.
    """
    own = network.state_dict()
    unfit = [k for k in state if k not in own or own[k].shape != state[k].shape]
    missing = [k for k in own if k not in state and k not in may_lack]
    if unfit or missing:
        raise TrainingError(
            f"the weights to start from do not fit the network at '{(unfit + missing)[0]}' "
            f"({len(unfit)} surplus or of another shape, {len(missing)} missing): set {advice}"
        )
    network.load_state_dict(state, strict=False)

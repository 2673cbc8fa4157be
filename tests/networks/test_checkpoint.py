from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mpn.errors import CheckpointError, InputError, OutputError
from mpn.networks.checkpoint import (
    RoleWeights,
    build_network,
    load_checkpoint,
    merge_checkpoints,
    save_checkpoint,
)
from mpn.networks.flownet2 import FLOW_VARIANTS, FlowNet2, FlowNet2Config, FlowVariant
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationConfig, PropagationNet
from tests.builders.tiny_disk import tiny_disk as tiny_disk
from tests.networks.public_files import deeplab_state, flow_state, osvos_state

FLOW = FlowNet2Config("FlowNet2S", width=0.125)
PROPAGATION = PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1)
OSVOS = OsvosConfig(width=0.125)


def _network(role: str) -> nn.Module:
    torch.manual_seed(0)
    return {
        "flow": lambda: FlowNet2(FLOW),
        "propagation": lambda: PropagationNet(PROPAGATION),
        "osvos": lambda: OsvosVgg(OSVOS),
    }[role]()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An own checkpoint with all three roles."""
    roles = {role: _network(role) for role in ("flow", "propagation", "osvos")}
    return save_checkpoint(tmp_path / "mpn.pth", roles, {"licence": "CC-BY-NC-4.0"})


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# Own format


def test_own_checkpoint_gives_back_every_network(own: Path) -> None:
    checkpoint = load_checkpoint(own)
    assert list(checkpoint.roles) == ["flow", "propagation", "osvos"]
    for role, weights in checkpoint.roles.items():
        network = build_network(weights)
        original = _network(role)
        assert network.config == original.config
        assert _same(network.state_dict(), original.state_dict())
        assert not network.training
    assert checkpoint.kind == "mpn-checkpoint"
    assert checkpoint.sha256 == hashlib.sha256(own.read_bytes()).hexdigest()
    assert checkpoint.sources[0].path == own
    assert checkpoint.provenance == {"licence": "CC-BY-NC-4.0"}


def test_own_file_is_plain_and_versioned(own: Path) -> None:
    content = torch.load(own, weights_only=True)
    assert (content["format"], content["schema_version"]) == ("mpn-checkpoint", 1)
    assert content["roles"]["propagation"]["config"]["middle_blocks"] == 1


def test_built_networks_do_not_share_memory_with_the_weights(own: Path) -> None:
    weights = load_checkpoint(own).roles["osvos"]
    before = weights.state_dict["fuse.weight"].clone()
    with torch.no_grad():
        for parameter in build_network(weights).parameters():
            parameter.zero_()
    assert torch.equal(weights.state_dict["fuse.weight"], before)


def test_half_weights_come_back_as_float32(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "half.pth", {"osvos": _network("osvos").half()}, {})
    weights = load_checkpoint(path).roles["osvos"]
    assert {value.dtype for value in weights.state_dict.values()} == {torch.float32}


def test_loaded_weights_can_be_saved_again(own: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(own)
    path = save_checkpoint(tmp_path / "again.pth", dict(loaded.roles), loaded.provenance)
    again = load_checkpoint(path)
    for role in loaded.roles:
        assert _same(again.roles[role].state_dict, loaded.roles[role].state_dict)


def _edited(own: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(own, weights_only=True)
    edit(content)
    torch.save(content, own)
    return own


def _nested(depth: int) -> list[Any]:
    """Return a list whose text has 2^depth parts, in a file of one line."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested, nested]
    return nested


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer schema": (
        lambda c: c.update(schema_version=2),
        "has checkpoint schema 2, this version reads 1: upgrade",
    ),
    "no schema": (lambda c: c.pop("schema_version"), "has checkpoint schema a NoneType"),
    "no roles": (lambda c: c.update(roles={}), "lists no roles"),
    "unknown role": (lambda c: c["roles"].update(depth={}), "unknown role 'depth'"),
    "no config": (lambda c: c["roles"]["osvos"].pop("config"), "the role osvos lacks its"),
    "role is a list": (lambda c: c["roles"].update(osvos=[1]), "the role osvos lacks its"),
    "no tensors": (lambda c: c["roles"]["osvos"].update(state_dict={}), "osvos lacks its"),
    "newer variant": (
        lambda c: c["roles"]["osvos"].update(variant="OsvosResNet"),
        r"unknown osvos network 'OsvosResNet' \(known: OsvosVgg\)",
    ),
    "unknown config": (
        lambda c: c["roles"]["osvos"]["config"].update(depth=3),
        r"unknown config of OsvosVgg: 'depth' \(known: branches, upsample, width\)",
    ),
    "wrong value": (
        lambda c: c["roles"]["osvos"]["config"].update(branches=7),
        "config of OsvosVgg cannot be used: OSVOS has 4 or 5 side branches, got 7",
    ),
    "wrong type": (
        lambda c: c["roles"]["propagation"]["config"].update(classes=[2]),
        "has .* classes",
    ),
    "list of lists": (
        lambda c: c["roles"]["osvos"]["config"].update(width=_nested(60)),
        "the role osvos lacks its variant, config",
    ),
    "huge schema": (lambda c: c.update(schema_version=1 << 2000), "checkpoint schema a int"),
    "huge value": (
        lambda c: c["roles"]["propagation"]["config"].update(classes=1 << 2000),
        "the role propagation lacks its variant, config",
    ),
    "long config": (
        lambda c: c["roles"]["osvos"]["config"].update({"x" * 999: 1}),
        r"unknown config of OsvosVgg: 'x{97}\.\.\.' \(known",
    ),
    "long variant": (
        lambda c: c["roles"]["osvos"].update(variant="x" * 1001),
        "the role osvos lacks its variant, config",
    ),
    "long name": (
        lambda c: c["roles"]["osvos"]["state_dict"].update({"model." * 10**6: torch.ones(1)}),
        "has a name of 6000000 characters, more than 1000",
    ),
    "array as a value": (
        lambda c: c["roles"]["osvos"]["config"].update(branches=np.zeros(2)),
        "the role osvos lacks its variant, config",
    ),
    "two variants": (
        lambda c: c["roles"]["flow"]["config"].update(variant="FlowNet2C"),
        "the config is of FlowNet2C, the entry FlowNet2S",
    ),
    "wrong width": (
        lambda c: c["roles"]["osvos"]["config"].update(width=0.25),
        r"'stages.0.0.weight' is \(8, 3, 3, 3\) instead of \(16, 3, 3, 3\) and \d+ more shapes",
    ),
    "missing key": (
        lambda c: c["roles"]["osvos"]["state_dict"].pop("fuse.bias"),
        "weights of OsvosVgg: missing 'fuse.bias': save the network again",
    ),
    "surplus key": (
        lambda c: c["roles"]["osvos"]["state_dict"].update({"x": torch.zeros(1)}),
        "surplus 'x'",
    ),
    "wrong dtype": (
        lambda c: c["roles"]["osvos"]["state_dict"].update({"fuse.bias": torch.zeros(1).bool()}),
        r"'fuse.bias' is \(1,\) torch.bool instead of \(1,\)",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_own_checkpoints_get_one_line(own: Path, case: str) -> None:
    edit, message = DAMAGED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(_edited(own, edit))
    assert str(own) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_long_name_in_safetensors_is_one_line(tmp_path: Path) -> None:
    """A prefix a million times was removed a million times."""
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"model." * 10**6 + "w": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="has a name of 6000001 characters"):
        load_checkpoint(path)


def test_cs_weights_saved_as_flownet2_are_found_out(tmp_path: Path) -> None:
    state = flow_state("FlowNet2CS")
    weights = RoleWeights("flow", "FlowNet2", {"variant": "FlowNet2", "width": 1.0}, state)
    path = save_checkpoint(tmp_path / "flow.pth", {"flow": weights}, {})
    message = r"missing 'flownets_2.*these look like FlowNet2CS weights, save them as that variant"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


# Saving


def test_nothing_is_left_when_the_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mpn.pth"
    path.write_bytes(b"old")

    def full(_content: object, stream: Any) -> None:
        stream.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nat")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OutputError, match=r"cannot write .*: the disk may be full \(PytorchStream"
    ) as caught:
        save_checkpoint(path, {"osvos": _network("osvos")}, {})
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["mpn.pth"]
    assert path.read_bytes() == b"old"


def test_full_disk_leaves_nothing(tiny_disk: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*mpn\.pth: .*(space|disk)") as caught:
        save_checkpoint(tiny_disk / "mpn.pth", {"osvos": _network("osvos")}, {})
    assert "\n" not in str(caught.value)
    assert not list(tiny_disk.iterdir())


def test_interrupted_saving_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_content: object, _stream: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "mpn.pth", {"osvos": _network("osvos")}, {})
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_hold_a_file_are_refused(tmp_path: Path) -> None:
    roles = {"osvos": _network("osvos")}
    with pytest.raises(OutputError, match="it is a folder"):
        save_checkpoint(tmp_path, roles, {})
    with pytest.raises(OutputError, match=r"the folder .*absent is missing"):
        save_checkpoint(tmp_path / "absent" / "mpn.pth", roles, {})


@pytest.mark.parametrize(
    ("roles", "provenance", "message"),
    [
        (dict, {}, "at least one role"),
        (lambda: {"depth": _network("osvos")}, {}, "unknown role 'depth'"),
        (lambda: {"flow": _network("osvos")}, {}, "must be a FlowNet2, got a OsvosVgg"),
        (lambda: {"osvos": _network("osvos")}, {"where": Path()}, "must be JSON types"),
        (lambda: {"osvos": _network("osvos")}, {"j": float("nan")}, "must be JSON types"),
        (
            lambda: {"osvos": RoleWeights.from_network("flow", _network("flow"))},
            {},
            "weights of the role flow are given as osvos",
        ),
    ],
)
def test_invalid_checkpoint_is_not_saved(
    tmp_path: Path, roles: Callable[[], Any], provenance: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "mpn.pth", roles(), provenance)
    assert not list(tmp_path.iterdir())


# Public files


@pytest.mark.parametrize("variant", FLOW_VARIANTS)
def test_public_flow_files_load_with_their_variant(tmp_path: Path, variant: FlowVariant) -> None:
    path = tmp_path / f"{variant}_checkpoint.pth.tar"
    state = flow_state(variant)
    torch.save({"epoch": 0, "state_dict": state, "best_EPE": 1.0}, path)
    checkpoint = load_checkpoint(path, expected_role="flow", expected_variant=variant)
    assert checkpoint.roles["flow"].variant == variant
    assert checkpoint.kind == "NVIDIA/flownet2-pytorch"


def test_public_osvos_parent_builds_its_network(tmp_path: Path) -> None:
    path = tmp_path / "parent_epoch-239.pth"
    torch.save(osvos_state(), path)
    network = build_network(load_checkpoint(path).roles["osvos"])
    assert isinstance(network, OsvosVgg)
    assert network.config == OsvosConfig(4, "deconv_center_crop")


def test_public_deeplab_may_lack_batch_counters_only(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    counters = ("num_batches_tracked",)
    old = {f"module.{k}": v for k, v in deeplab_state().items() if not k.endswith(counters)}
    torch.save(
        {"epoch": 1, "state_dict": old, "optimizer": {}, "best_pred": np.float64(0.71)}, path
    )
    weights = load_checkpoint(path).roles["propagation"]
    assert len(weights.state_dict) == 848
    assert weights.config["residual_relu"] is True
    del old["module.aspp.bn1.running_var"]
    torch.save({"state_dict": old}, path)
    with pytest.raises(CheckpointError, match=r"missing 'aspp\.bn1\.running_var': public files"):
        load_checkpoint(path)


def test_lightning_and_safetensors_files_load(tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in osvos_state().items()}
    lightning = tmp_path / "epoch=3.ckpt"
    hollow = {f"model.{key}": value for key, value in state.items()}
    torch.save({"state_dict": hollow, "best": np.float64(0.7), "hyper_parameters": {}}, lightning)
    tensors = tmp_path / "model.safetensors"
    safetensors.torch.save_file({f"net.{key}": value for key, value in state.items()}, tensors)
    for path in (lightning, tensors):
        loaded = load_checkpoint(path, expected_role="osvos").roles["osvos"].state_dict
        assert _same(loaded, state)


@pytest.mark.parametrize("length", [5, 40, 200])
def test_damaged_safetensors_are_one_line(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    data = safetensors.torch.save({"a.weight": torch.zeros(64)})
    path.write_bytes(data[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="of no known layout: its first keys are 'a"):
        load_checkpoint(path)


def test_arrays_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a.weight": np.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="holds no state dict: it has 'a"):
        load_checkpoint(path)


@pytest.mark.parametrize("way", ["zero", "mean", "normal"])
def test_three_channel_deeplab_needs_a_fourth_channel(tmp_path: Path, way: str) -> None:
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": deeplab_state(in_channels=3)}, path)
    message = r"has 3 input channels \('backbone.conv1.weight'\).*--init-fourth-channel zero, mean"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    weights = load_checkpoint(path, init_fourth_channel=way).roles["propagation"]
    assert weights.config["in_channels"] == 4
    assert weights.state_dict["backbone.conv1.weight"].shape == (32, 4, 3, 3)


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "21 classes": (
        lambda: deeplab_state(classes=21),
        r"has 21 classes \('decoder.last_conv.8.weight'\), but needs 2",
    ),
    "6 channels": (lambda: deeplab_state(in_channels=6), "has 6 input channels"),
    "a lite network": (lambda: deeplab_state(width=0.5), "more shapes differ.*must come from mpn"),
    "surplus": (
        lambda: {**osvos_state(), "score_dsn.4.weight": torch.zeros(1)},
        "surplus 'score_dsn.4.weight': take the file as its authors published it",
    ),
    "missing": (
        lambda: {k: v for k, v in flow_state("FlowNet2C").items() if "deconv" not in k},
        "weights of FlowNet2C: missing 'deconv5.0.weight', 'deconv5.0.bias', 'deconv4.0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_public_files_that_do_not_fit_get_one_line(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    path = tmp_path / "public.pth"
    torch.save(make(), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cs_file_where_flownet2_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "FlowNet2-CS_checkpoint.pth.tar"
    torch.save({"state_dict": flow_state("FlowNet2CS")}, path)
    message = (
        r"holds FlowNet2CS, but FlowNet2 is expected \(missing 'flownets_2.*\): give a file of "
        "FlowNet2, or choose FlowNet2CS"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, expected_variant="FlowNet2")


def test_expectations_and_options_are_checked(own: Path, tmp_path: Path) -> None:
    osvos = save_checkpoint(tmp_path / "osvos.pth", {"osvos": _network("osvos")}, {})
    with pytest.raises(CheckpointError, match=r"holds OsvosVgg \(role osvos\), but .* role flow"):
        load_checkpoint(osvos, expected_role="flow")
    with pytest.raises(CheckpointError, match=", but DeepLabXception is expected"):
        load_checkpoint(osvos, expected_variant="DeepLabXception")
    with pytest.raises(InputError, match="unknown role 'depth'"):
        load_checkpoint(own, expected_role="depth")
    with pytest.raises(InputError, match="unknown network 'RAFT'"):
        load_checkpoint(own, expected_variant="RAFT")
    with pytest.raises(InputError, match="unknown initialisation 'ones'"):
        load_checkpoint(own, init_fourth_channel="ones")


# Several files


def test_roles_of_several_files_are_merged(tmp_path: Path) -> None:
    paths = [
        save_checkpoint(tmp_path / f"{role}.pth", {role: _network(role)}, {"licence": role})
        for role in ("flow", "osvos")
    ]
    merged = merge_checkpoints([load_checkpoint(path) for path in paths])
    assert list(merged.roles) == ["flow", "osvos"]
    assert [source.path for source in merged.sources] == paths
    assert merged.provenance == {
        "flow.pth": {"licence": "flow"},
        "osvos.pth": {"licence": "osvos"},
    }
    one = load_checkpoint(paths[0])
    assert merge_checkpoints([one]) is one


def test_a_role_in_two_files_is_refused(own: Path, tmp_path: Path) -> None:
    osvos = save_checkpoint(tmp_path / "osvos.pth", {"osvos": _network("osvos")}, {})
    with pytest.raises(CheckpointError, match=r"mpn\.pth and .*osvos\.pth both hold osvos weights"):
        merge_checkpoints([load_checkpoint(own), load_checkpoint(osvos)])
    with pytest.raises(CheckpointError, match="no checkpoint was given"):
        merge_checkpoints([])


def test_weights_that_do_not_fit_build_nothing() -> None:
    weights = RoleWeights.from_network("osvos", _network("osvos"))
    cut = {key: value for key, value in weights.state_dict.items() if key != "fuse.bias"}
    broken = RoleWeights("osvos", weights.variant, weights.config, cut)
    with pytest.raises(CheckpointError, match=r"do not fit OsvosVgg: missing 'fuse\.bias'"):
        build_network(broken)

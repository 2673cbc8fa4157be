from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mpn.errors import CheckpointError, InputError
from mpn.networks.osvos import (
    TRUNK_FACTOR,
    OsvosConfig,
    OsvosVgg,
    Upsample,
    five_branch_from_four,
    rescale_trunk,
)
from tests.networks.seeded import OSVOS_GAIN, seeded_state_dict

WIDTH = 0.25
IMAGE = torch.randn((1, 3, 47, 70), generator=torch.Generator().manual_seed(4)) * 60


def _seeded(branches: int, upsample: Upsample) -> OsvosVgg:
    net = OsvosVgg(OsvosConfig(branches, upsample, WIDTH))
    net.load_state_dict(seeded_state_dict(net, OSVOS_GAIN), strict=True)
    return net.eval()


def _largest_activation(net: OsvosVgg) -> float:
    peaks: list[float] = []

    def record(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        peaks.append(output.abs().max().item())

    handles = [stage.register_forward_hook(record) for stage in net.stages]
    with torch.inference_mode():
        net.logits(IMAGE)
    for handle in handles:
        handle.remove()
    return max(peaks)


@pytest.mark.parametrize(
    ("branches", "upsample"), [(4, "deconv_center_crop"), (5, "resize"), (5, "deconv_center_crop")]
)
@torch.inference_mode()
def test_rescaled_trunk_gives_the_same_logits_to_the_last_bit(
    branches: int, upsample: Upsample
) -> None:
    net = _seeded(branches, upsample)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    rescaled = rescale_trunk(net)
    for ours, theirs in zip(rescaled(IMAGE), net(IMAGE), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert _largest_activation(rescaled) == _largest_activation(net) * TRUNK_FACTOR


@pytest.mark.parametrize("left_out", ["stages.0.0.weight", "stages.3.1.bias", "side_prep.1.weight"])
@torch.inference_mode()
def test_equality_check_detects_a_missing_tensor(left_out: str) -> None:
    net = _seeded(4, "resize")
    state = rescale_trunk(net.state_dict())
    state[left_out] = net.state_dict()[left_out]
    broken = OsvosVgg(net.config).eval()
    broken.load_state_dict(state)
    assert not torch.allclose(broken.logits(IMAGE), net.logits(IMAGE))


@torch.inference_mode()
def test_rescale_trunk_prevents_half_overflow() -> None:
    net = _seeded(5, "resize")
    net.stages[0][0].weight.mul_(
        2048
    )  # a trunk that leaves the range of half, and sides that do not
    for side in net.side_prep:
        side.weight.div_(2048)
    assert _largest_activation(net) > torch.finfo(torch.float16).max
    rescaled = rescale_trunk(net).half()
    assert torch.isfinite(rescaled.logits(IMAGE)).all()
    assert not torch.isfinite(net.half().logits(IMAGE)).all()


@pytest.mark.parametrize("factor", [0.0, -0.5, 0.1, float("inf"), float("nan")])
def test_a_factor_that_would_round_is_refused(factor: float) -> None:
    with pytest.raises(InputError, match="power of two"):
        rescale_trunk({}, factor)


@pytest.mark.parametrize("upsample", ["deconv_center_crop", "resize"])
@torch.inference_mode()
def test_five_branch_from_four_keeps_fused_logits(upsample: Upsample) -> None:
    four = _seeded(4, upsample)
    five = OsvosVgg(OsvosConfig(5, upsample, WIDTH)).eval()
    public = _seeded(4, "deconv_center_crop").state_dict()
    five.load_state_dict(five_branch_from_four(public, upsample=upsample), strict=True)
    old, new = four(IMAGE), five(IMAGE)
    torch.testing.assert_close(new[-1], old[-1])
    for k in range(4):
        assert torch.equal(new[k + 1], old[k])
    five.fuse.weight[:, :1] += 1.0  # control: the new branch does reach the fusion
    assert not torch.allclose(five.logits(IMAGE), old[-1])


def test_the_new_branch_can_learn() -> None:
    five = OsvosVgg(OsvosConfig(5, "resize", WIDTH))
    five.load_state_dict(five_branch_from_four(_seeded(4, "resize").state_dict()))
    five.logits(IMAGE).mean().backward()
    gradient = five.fuse.weight.grad
    assert gradient is not None
    assert gradient[:, : five.side_prep[0].out_channels].abs().max() > 0


@pytest.mark.parametrize(
    "state",
    [dict, lambda: OsvosVgg(OsvosConfig(5, "resize", WIDTH)).state_dict()],
    ids=["empty", "five already"],
)
def test_conversion_of_other_weights_is_refused(state: Callable[[], dict[str, Tensor]]) -> None:
    with pytest.raises(CheckpointError, match="4 side branches"):
        five_branch_from_four(state())

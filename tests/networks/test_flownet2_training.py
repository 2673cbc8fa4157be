"""Training interface of FlowNet 2.0: flows at every scale, per member."""

from __future__ import annotations

import pytest
import torch

from mpn.errors import InputError
from mpn.networks.flownet2 import (
    FLOW_SCALE,
    FLOW_VARIANTS,
    FlowNet2,
    FlowNet2Config,
    FlowVariant,
    sd_weights_with_larger_flow,
)
from tests.tolerances import PARITY_RELATIVE

WIDTH = 0.0625


def _network(variant: FlowVariant, **kw: float) -> FlowNet2:
    torch.manual_seed(0)
    return FlowNet2(FlowNet2Config(variant, WIDTH), **kw)


def _frames(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 2, 3, size, size, generator=generator) * 255)  # type: ignore[return-value]


@pytest.mark.parametrize("variant", FLOW_VARIANTS)
def test_every_member_gives_its_flows_from_coarse_to_fine(variant: FlowVariant) -> None:
    network = _network(variant)
    for member in network.members:
        flows = network.pyramid(*_frames(), member)
        sizes = [flow.shape[-1] for flow in flows]
        assert sizes == ([16, 32, 64] if member == "flownetfusion" else [1, 2, 4, 8, 16])
        assert all(flow.shape[:2] == (2, 2) and flow.dtype == torch.float32 for flow in flows)


@pytest.mark.parametrize("variant", FLOW_VARIANTS)
def test_pyramid_finest_flow_equals_forward(
    variant: FlowVariant,
) -> None:
    network = _network(variant).eval()
    with torch.no_grad():
        answer = network(*_frames())
        finest = network.pyramid(*_frames(), network.members[-1])[-1]
    if finest.shape != answer.shape:
        mode = "nearest" if variant == "FlowNet2CSS" else "bilinear"
        corners = None if mode == "nearest" else False
        finest = torch.nn.functional.interpolate(
            finest, scale_factor=4.0, mode=mode, align_corners=corners
        )
    torch.testing.assert_close(finest, answer, rtol=1e-5, atol=1e-5)
    assert answer.abs().max() > 0


@pytest.mark.parametrize(
    "member", ["flownetc", "flownets_1", "flownets_2", "flownets_d", "flownetfusion"]
)
def test_only_the_member_that_is_trained_has_gradients(member: str) -> None:
    network = _network("FlowNet2")
    sum(flow.square().mean() for flow in network.pyramid(*_frames(), member)).backward()
    with_gradients = {
        name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None
    }
    assert with_gradients == {member}
    for name, p in network.named_parameters():
        if name.startswith(f"{member}."):
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name


def test_an_unknown_member_is_refused() -> None:
    with pytest.raises(InputError, match="FlowNet2S has no member 'flownetc'"):
        _network("FlowNet2S").pyramid(*_frames(), "flownetc")


def test_sd_in_another_unit_is_the_same_function() -> None:
    trained = _network("FlowNet2", small_flow_scale=FLOW_SCALE)
    with torch.no_grad():  # biases that are not zero
        for parameter in trained.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.1, 0.1)
    deployed = _network("FlowNet2")
    with torch.no_grad():
        wanted = trained.flownets_d.pyramid(torch.rand(1, 6, 64, 64) - 0.5)
        state = sd_weights_with_larger_flow(trained.state_dict(), FLOW_SCALE**2)
        deployed.load_state_dict(state)
        torch.manual_seed(5)
        frames = torch.rand(1, 6, 64, 64) - 0.5
        wanted = trained.flownets_d.pyramid(frames)
        got = deployed.flownets_d.pyramid(frames)
        for a, b in zip(wanted, got, strict=True):
            scale = float(a.abs().max())
            torch.testing.assert_close(a, b / FLOW_SCALE**2, rtol=0, atol=PARITY_RELATIVE * scale)
        torch.testing.assert_close(trained(*_frames()), deployed(*_frames()), rtol=1e-3, atol=1e-3)
        # control: without the division where the flow is read, the function is another one
        key = "flownets_d.inter_conv4.0.weight"
        deployed.load_state_dict(state | {key: trained.state_dict()[key]})
        wrong = deployed.flownets_d.pyramid(frames)[-1] / FLOW_SCALE**2
        assert (wrong - wanted[-1]).abs().max() > 100 * PARITY_RELATIVE * wanted[-1].abs().max()
    back = sd_weights_with_larger_flow(state, FLOW_SCALE**-2)
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(back[key], value, rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="above 0 only, got 0"):
        sd_weights_with_larger_flow(state, 0)

from __future__ import annotations

import torch

from mpn.training.losses import segmentation_loss


def _logits(margin: float, mask: torch.Tensor) -> torch.Tensor:
    signed = torch.where(mask > 0.5, margin, -margin)
    return torch.stack([-signed / 2, signed / 2], dim=1)


def test_the_loss_orders_right_unsure_and_wrong() -> None:
    mask = torch.zeros(2, 9, 9)
    mask[:, 2:6, 2:6] = 1
    right, unsure, wrong = (
        float(segmentation_loss(_logits(m, mask), mask, dice_weight=0.5)) for m in (8, 0, -8)
    )
    assert right < 0.01
    assert right < unsure < wrong


def test_cross_entropy_alone_is_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, 5, generator=generator)
    target = (torch.rand(3, 5, 5, generator=generator) > 0.5).float()
    expected = torch.nn.functional.cross_entropy(logits, target.long())
    got = segmentation_loss(logits, target, dice_weight=0.0)
    torch.testing.assert_close(got, expected)
    # control: swapped classes are another loss
    assert abs(float(segmentation_loss(logits.flip(1), target, dice_weight=0.0) - expected)) > 0.01


def test_loss_of_empty_target_is_finite_and_minimal() -> None:
    empty = torch.zeros(1, 9, 9)
    silent = segmentation_loss(_logits(8, empty), empty, dice_weight=1.0)
    loud = segmentation_loss(_logits(-8, empty), empty, dice_weight=1.0)
    assert torch.isfinite(silent)
    assert silent < 0.05 < loud

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpn.errors import InputError
from mpn.training.losses import class_balanced_loss
from tests.tolerances import LOSS_RELATIVE


def _by_hand(logits: np.ndarray, mask: np.ndarray, *, swap: bool = False) -> float:
    """Compute the published formula in float64, image by image."""
    total = 0.0
    for x, y in zip(logits.astype(np.float64), mask >= 0.5, strict=True):
        prob = 1 / (1 + np.exp(-x))
        inside, outside, count = y.sum(), (~y).sum(), y.size
        if swap:
            inside, outside = outside, inside
        total += outside / count * -np.log(prob[y]).sum()
        total += inside / count * -np.log(1 - prob[~y]).sum()
    return total / len(logits)


def _case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 1, 7, 9)).astype(np.float32)
    mask = (rng.random((3, 1, 7, 9)) < np.array([0.1, 0.5, 0.8])[:, None, None, None]).astype(
        np.float32
    )
    return logits, mask


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 63)])
def test_the_loss_is_the_published_one(reduction: str, divisor: int) -> None:
    logits, mask = _case()
    loss = class_balanced_loss(
        torch.from_numpy(logits),
        torch.from_numpy(mask),
        reduction=reduction,  # type: ignore[arg-type]
    )
    assert float(loss) == pytest.approx(_by_hand(logits, mask) / divisor, rel=LOSS_RELATIVE)
    # control: the weights of the classes the other way round are another loss
    swapped = _by_hand(logits, mask, swap=True) / divisor
    assert float(loss) != pytest.approx(swapped, rel=0.1)


def test_object_and_background_pull_equally_hard() -> None:
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 0, :3] = 1
    class_balanced_loss(logits, mask, reduction="sum").backward()
    assert logits.grad is not None
    inside, outside = logits.grad[mask > 0].sum(), logits.grad[mask == 0].sum()
    assert float(inside + outside) == pytest.approx(0, abs=1e-6)
    assert float(inside) < -0.5


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_image_of_one_class_has_no_loss(value: float) -> None:
    mask = torch.full((2, 1, 4, 4), value)
    assert float(class_balanced_loss(torch.randn(2, 1, 4, 4), mask)) == 0


def test_large_logits_stay_finite() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0] = 1
    assert torch.isfinite(class_balanced_loss(torch.full((1, 1, 4, 4), -1e4), mask))


def test_other_shapes_and_reductions_are_refused() -> None:
    with pytest.raises(InputError, match=r"one shape \(B, 1, H, W\)"):
        class_balanced_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(InputError, match="unknown reduction 'max'"):
        class_balanced_loss(
            torch.zeros(1, 1, 4, 4),
            torch.zeros(1, 1, 4, 4),
            reduction="max",  # type: ignore[arg-type]
        )

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpn.runtime.crf import dense_crf
from tests.tolerances import CRF_ARGMAX_AGREEMENT, CRF_MEAN_ABSOLUTE

PARAMETERS = {
    "sxy_gaussian": "sxy_g",
    "compat_gaussian": "compat_g",
    "sxy_bilateral": "sxy_b",
    "srgb_bilateral": "srgb_b",
    "compat_bilateral": "compat_b",
    "iterations": "iterations",
}


def parameters_from_json(text: np.ndarray) -> dict[str, float]:
    """Golden parameters by our names."""
    golden = json.loads(text.item())
    return {ours: golden[theirs] for ours, theirs in PARAMETERS.items()}


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (2, "deeplab_like"),
        (2, "pydensecrf_readme"),
        (2, "osvos_like"),
        (2, "gauss_only"),
        (4, "deeplab_like"),
        (4, "pydensecrf_readme"),
    ],
)
def test_agrees_with_pydensecrf(golden: Path, labels: int, name: str) -> None:
    with np.load(golden / "crf" / f"crf_{labels}labels.npz") as case:
        q = dense_crf(
            case["unary"], case["image_rgb"], **parameters_from_json(case[f"params_{name}"])
        )
        expected = case[f"Q_{name}"]
        assert np.abs(q - expected).mean() <= CRF_MEAN_ABSOLUTE
        assert (q.argmax(axis=0) == case[f"argmax_{name}"]).mean() >= CRF_ARGMAX_AGREEMENT

"""Graphs of features networks, and directories that hold one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mpn.engines.open import open_engines
from mpn.engines.spec import features_spec
from mpn.errors import EngineError, InputError
from mpn.export.bundle import export_bundle
from mpn.export.options import ExportOptions
from mpn.networks.checkpoint import save_checkpoint
from mpn.networks.propagation import PropagationConfig, PropagationNet
from tests.export.conftest import MAX_OBJECTS, ROI_SIZE
from tests.networks.seeded import DEEPLAB_GAIN, seeded
from tests.networks.test_features import public_lite0

SIZE_HW = (65, 97)


def test_imagenet_file_beside_checkpoint_becomes_features(tmp_path: Path) -> None:
    config = PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1)
    network = seeded(PropagationNet(config), DEEPLAB_GAIN)
    propagation = save_checkpoint(tmp_path / "propagation.pth", {"propagation": network}, {})
    trunk = tmp_path / "efficientnet_lite0.pth"
    torch.save(public_lite0(), trunk)
    options = ExportOptions(
        roi_size=ROI_SIZE,
        max_objects=MAX_OBJECTS,
        frame_size_hw=(64, 96),
        features_size_hw=SIZE_HW,
        finetune=False,
    )
    bundle = export_bundle([propagation, trunk], tmp_path / "engines", options)
    assert bundle.manifest.roles["features"].variant == "efficientnet-lite0-os16"
    with open_engines(bundle.directory, backend="cpu", threads=1) as engines:
        assert engines.features is not None
        image = np.zeros((1, 3, *SIZE_HW), np.float32)
        assert engines.features.run({"image": image})["features"].shape == (1, 176, 9, 13)
    with open_engines(bundle.directory, backend="cpu", with_features=False) as engines:
        assert engines.features is None


@pytest.mark.parametrize("size_hw", [(64, 97), (65, 96), (1, 33)])
def test_features_size_must_be_32n_plus_1(size_hw: tuple[int, int]) -> None:
    with pytest.raises(EngineError, match=r"must be 32 n \+ 1"):
        features_spec(size_hw, 3)
    with pytest.raises(InputError, match=r"must be 32 n \+ 1"):
        ExportOptions(features_size_hw=size_hw)

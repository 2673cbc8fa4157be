"""Features of the target model in training, and a cache of those of sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from mpn._common.files import output_errors, remove_temporaries, write_atomically
from mpn.engines.spec import FEATURES_SIZE_STEP, features_spec
from mpn.errors import TrainingError
from mpn.networks.checkpoint import build_network, load_checkpoint
from mpn.networks.features import FeaturesNet, NormalisedRgb
from mpn.runtime.host.target import TargetStage
from mpn.runtime.options import ResolvedTarget
from mpn.runtime.target import grid_hw
from mpn.training.data import DavisSequence
from mpn.training.torch_engine import TorchEngine
from mpn.types import Float32Array, UInt8Array

_NAME_DIGITS = 12


def load_features(path: Path) -> FeaturesNet:
    """Load the features network of a file, in evaluation mode.

    Args:
        path: A checkpoint with the role features, or an ImageNet file of a backbone.

    Raises:
        CheckpointError: If the file cannot be used.
    """
    weights = load_checkpoint(path, expected_role="features").roles["features"]
    network = build_network(weights)
    assert isinstance(network, FeaturesNet)
    return network.requires_grad_(False)


class TorchFeaturesEngine(TorchEngine):
    """Frozen features network: image (1, 3, H, W) -> features (1, C, H / 8, W / 8).

    The image is RGB in 0..255.

    Args:
        network: The network.
        size_hw: (H, W) of its input, each 32 n + 1.
    """

    def __init__(self, network: FeaturesNet, size_hw: tuple[int, int]) -> None:
        super().__init__(network, features_spec(size_hw, network.channels))
        self._normalised = NormalisedRgb().to(self._device)

    def forward(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        """Compute the features; see :class:`mpn.training.torch_engine.TorchEngine`."""
        (image,) = inputs
        normalised = self._normalised(image).contiguous(memory_format=torch.channels_last)
        features: Tensor = network(normalised)
        return features


class ClipFeatures:
    """Features of the frames of clips, by the runtime's own preprocessing.

    Those of sequences are read from a cache of float16 files, those of other clips are computed.
    Threads may share it.

    Args:
        network: The frozen network, on its device.
        size_hw: (height, width) of its input for sequences, each 32 n + 1.
        short_side_px: Short side of its input for other clips, 32 n + 1.
        cache: Folder of the files; :meth:`fill` creates it.
    """

    def __init__(
        self,
        network: FeaturesNet,
        size_hw: tuple[int, int],
        short_side_px: int,
        cache: Path,
    ) -> None:
        self._network, self._cache = network, cache
        self.size_hw, self._short_side_px = size_hw, short_side_px
        self._digest = _weights_digest(network)
        self._stages: dict[tuple[int, int], TargetStage] = {}
        self._maps: dict[str, npt.NDArray[np.float16]] = {}

    def fill(
        self, sequences: Sequence[DavisSequence], notice: Callable[[str], None] = lambda _: None
    ) -> None:
        """Compute the files that the cache lacks. Each is complete or absent.

        Args:
            sequences: The sequences to read later.
            notice: Called with the size of the cache.

        Raises:
            OutputError: If a file cannot be written.
            TrainingError: If a feature does not fit float16, or the frames of a sequence differ in
                size.
        """
        missing = [sequence for sequence in sequences if not self._path(sequence).is_file()]
        rows, columns = grid_hw(self.size_hw)
        frames = sum(len(sequence) for sequence in sequences)
        gigabytes = 2e-9 * frames * self._network.channels * rows * columns
        notice(
            f"features of {len(sequences)} sequences: {gigabytes:.2f} GB in {self._cache}, "
            f"{len(missing)} to compute"
        )
        with output_errors(self._cache):
            self._cache.mkdir(parents=True, exist_ok=True)
            for sequence in missing:
                remove_temporaries(self._path(sequence))
        for sequence in missing:
            self._write(sequence)

    def of_sequence(self, sequence: DavisSequence, index: int) -> Float32Array:
        """Read the features of a frame: (C, gh, gw) float32 at ``size_hw``.

        Raises:
            TrainingError: If the cache lacks the sequence.
        """
        found = self._maps.get(sequence.name)
        if found is None:
            path = self._path(sequence)
            try:
                found = open_memmap(path, mode="r")  # np.load reads archives too
            except (OSError, ValueError) as error:
                raise TrainingError(
                    f"{path} cannot be read as features: delete it, and resume the run"
                ) from error
            self._maps[sequence.name] = found
        features: Float32Array = found[index].astype(np.float32)
        return features

    def of_frame(self, rgb: UInt8Array) -> Float32Array:
        """Compute the features of a frame: (H, W, 3) uint8 RGB -> (C, gh, gw) float32.

        Raises:
            EngineError: If they are not finite.
        """
        return self._stage(self.frame_size_hw((rgb.shape[0], rgb.shape[1]))).features(rgb)

    def frame_size_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the input for a frame that is of no sequence."""
        cells = (self._short_side_px - 1) / FEATURES_SIZE_STEP
        height, width = (
            FEATURES_SIZE_STEP * round(cells * side / min(frame_hw)) + 1 for side in frame_hw
        )
        return height, width

    def _stage(self, size_hw: tuple[int, int]) -> TargetStage:
        stage = self._stages.get(size_hw)
        if stage is None:
            engine = TorchFeaturesEngine(self._network, size_hw)
            self._stages[size_hw] = stage = TargetStage(engine, ResolvedTarget())
        return stage

    def _path(self, sequence: DavisSequence) -> Path:
        """Name the file by the weights, the size and the images."""
        images = [f"{path.name} {path.stat().st_size}" for path in sequence.image_paths]
        key = f"{self._digest} {self.size_hw} {' '.join(images)}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:_NAME_DIGITS]
        return self._cache / f"{sequence.name}-{digest}.npy"

    def _write(self, sequence: DavisSequence) -> None:
        stage = self._stage(self.size_hw)
        shape = (len(sequence), self._network.channels, *grid_hw(self.size_hw))

        def write(stream: BinaryIO) -> None:
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for index in range(len(sequence)):
                with np.errstate(over="ignore"):
                    half = stage.features(sequence.rgb(index)).astype("<f2")
                if not np.isfinite(half).all():
                    raise TrainingError(
                        f"a feature of frame {index} of '{sequence.name}' is above the range of "
                        "float16: take another features network"
                    )
                stream.write(half.tobytes())

        write_atomically(self._path(sequence), write)


def _weights_digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

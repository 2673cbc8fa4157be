"""Run the target model on the device: features, scores, and their warp and crop.

The reference is :mod:`mpn.runtime.host.target`. The classifiers are solved on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.api import Event, Stream
from mpn.cuda.array import Arguments, DeviceArray, KernelDevice
from mpn.engines.base import DeviceEngine
from mpn.engines.spec import FEATURES_STRIDE
from mpn.runtime.device.graphs import (
    GraphCache,
    StreamTimer,
    array_from_tensor,
    dtype_name,
    network_hw,
)
from mpn.runtime.device.images import flow_input
from mpn.runtime.target import Targets, raw_weights
from mpn.types import Float32Array


class FeaturesRunner:
    """Run the features engine on a separate stream.

    Args:
        stream: Runs the engine.
        engine: The features engine.
        use_graphs: Whether work is captured.
    """

    def __init__(self, stream: Stream, engine: DeviceEngine, *, use_graphs: bool) -> None:
        self.stream = stream
        self.size_hw = network_hw(engine)
        self._engine, self._use_graphs = engine, use_graphs
        self._graphs = GraphCache(stream, is_capturing=False)

    def begin(self) -> None:
        """Prepare the engine, and drop all graphs: buffers will change."""
        self._engine.prepare(self.stream.address)  # before supports_graph_capture is read
        can_capture = self._use_graphs and self._engine.supports_graph_capture
        self._graphs = GraphCache(self.stream, is_capturing=can_capture)

    def allocate(self) -> DeviceArray:
        """Allocate (C, gh, gw) for the features of one frame, of the engine's dtype."""
        output = array_from_tensor(self._engine.buffers().outputs["features"])
        return self.stream.empty(output.shape[1:], output.dtype)

    def enqueue(
        self, slot: int, rgb: DeviceArray, ready: Event, features: DeviceArray
    ) -> tuple[Event, StreamTimer]:
        """Enqueue the engine on a frame.

        Args:
            slot: Index of the frame's slot; its arrays are the same each time.
            rgb: (h, w, 3) uint8 RGB at working size.
            ready: Event after which ``rgb`` is complete.
            features: (C, gh, gw), written.

        Returns:
            The event after the work, and the timer of it.
        """
        self.stream.wait(ready)
        watch = StreamTimer(self.stream)
        with watch.stage("features"):
            self._graphs.run(slot, lambda: self._run(rgb, features))
        return self.stream.record(), watch

    def release(self) -> None:
        """Drop all graphs."""
        self._graphs.clear()

    def _run(self, rgb: DeviceArray, features: DeviceArray) -> None:
        image = array_from_tensor(self._engine.buffers().inputs["image"])
        flow_input(self.stream, rgb, self.size_hw, dtype=dtype_name(image), out=image)
        output = array_from_tensor(self._engine.enqueue(self.stream.address).outputs["features"])
        self.stream.copy(output.reshape(*features.shape), features)


class TargetScores:
    """Classifiers of all objects, and their scores in the last two frames.

    Scores of the current frame replace those of the frame before in :meth:`commit` only. Each
    buffer is allocated once, so that a frame can be captured as a CUDA graph.

    Args:
        stream: Runs the kernels.
        targets: The classifiers.
        scores: (K, gh, gw) float32 of the last committed frame.
        object_ids: The K ids.
        frame_hw: (h, w) of the working frame.
        size_hw: (height, width) of the features engine's input.
        has_planes: Whether the scores are also needed at the size of the frame.
    """

    def __init__(
        self,
        stream: Stream,
        targets: Targets,
        scores: Float32Array,
        object_ids: Sequence[int],
        *,
        frame_hw: tuple[int, int],
        size_hw: tuple[int, int],
        has_planes: bool,
    ) -> None:
        self._stream, self._object_ids = stream, tuple(object_ids)
        self._targets = targets
        gains, biases = raw_weights(targets, object_ids)
        self._gains, self._biases = stream.upload(_rows(gains)), stream.upload(_rows(biases))
        self._committed = stream.upload(_rows(scores))
        self.current = stream.empty(scores.shape, np.float32)
        """(K, gh, gw) float32: scores of the current frame before :meth:`commit`."""
        self._exclusive = stream.empty(scores.shape, np.float32)
        planes = (len(object_ids), *frame_hw)
        self._planes = stream.empty(planes, np.float32) if has_planes else None
        self._pinned: dict[str, npt.NDArray[Any]] = {}
        self._frame_hw, self._size_hw = frame_hw, size_hw
        self._grid: Arguments = {"grid_height": scores.shape[1], "grid_width": scores.shape[2]}

    @property
    def targets(self) -> Targets:
        """The classifiers."""
        return self._targets

    @property
    def committed(self) -> DeviceArray:
        """(K, gh, gw) float32: scores of the last committed frame."""
        return self._committed

    def read(self, features: DeviceArray, prob: DeviceArray) -> tuple[Float32Array, Float32Array]:
        """Copy the arrays of an update to the host, with one wait.

        Args:
            features: (C, gh, gw) float32 or float16.
            prob: (K, h, w) float32.

        Returns:
            Both in float32, overwritten by the next call.
        """
        for name, source in (("features", features), ("prob", prob)):
            if name not in self._pinned:
                self._pinned[name] = self._stream.pinned(source.shape, source.dtype)
            self._stream.download_async(source, self._pinned[name])
        self._stream.record().sync()
        return self._pinned["features"].astype(np.float32, copy=False), self._pinned["prob"]

    def learn(self, targets: Targets) -> None:
        """Replace the classifiers, for the scores of the next frame."""
        gains, biases = raw_weights(targets, self._object_ids)
        self._stream.upload(_rows(gains), self._gains)
        self._stream.upload(_rows(biases), self._biases)
        self._targets = targets

    def compute(self, features: DeviceArray) -> None:
        """Write :attr:`current` from the features of the frame.

        Args:
            features: (C, gh, gw) float32 or float16.
        """
        suffix = "f16" if features.dtype == np.float16 else "f32"
        self._stream.launch(
            f"target_scores_{suffix}",
            features=features,
            weights=self._gains,
            biases=self._biases,
            objects=len(self._object_ids),
            channels=features.shape[0],
            points=features.shape[1] * features.shape[2],
            scores=self.current,
        )

    def warp(self, flow_to_prev_px: DeviceArray) -> None:
        """Write :attr:`current` from the scores of the frame before.

        Args:
            flow_to_prev_px: (2, h, w) float32 on the current frame's grid.
        """
        (height, width), (input_height, input_width) = self._frame_hw, self._size_hw
        self._stream.launch(
            "warp_scores",
            scores=self._committed,
            flow_to_prev_px=flow_to_prev_px,
            step_x=input_width / width / FEATURES_STRIDE,
            step_y=input_height / height / FEATURES_STRIDE,
            warped=self.current,
            **self._in_frame,
        )

    def exclude_others(self, prob: DeviceArray) -> None:
        """Lower the scores that :meth:`grow` and :meth:`crop` use, by the other objects.

        See :func:`mpn.runtime.host.target.exclusive_scores`.

        Args:
            prob: (K, h, w) float32 of the candidates.
        """
        self._stream.launch(
            "exclude_others",
            scores=self.current,
            prob=prob,
            exclusive=self._exclusive,
            **self._in_frame,
        )

    def grow(self, rois: DeviceArray, growth: float) -> None:
        """Extend the ROIs by the scores of :meth:`exclude_others`.

        Args:
            rois: (K, 4) int32, written; an empty one does not change.
            growth: See :func:`mpn.runtime.host.target.grown_rois`.
        """
        (height, width), (input_height, input_width) = self._frame_hw, self._size_hw
        self._stream.launch(
            "grow_rois",
            scores=self._exclusive,
            cell_x=FEATURES_STRIDE * width / input_width,
            cell_y=FEATURES_STRIDE * height / input_height,
            growth=growth,
            rois=rois,
            **self._in_frame,
        )

    def crop(self, rois: DeviceArray, packed: DeviceArray, objects: DeviceArray | None) -> None:
        """Write the score channel, after :meth:`exclude_others`.

        Args:
            rois: (K, 4) int32; an empty one gives 0.
            packed: (N, 5, S, S) float32 or float16: the input; the last channel is written.
            objects: (N,) int32, the index of each crop's object; None: all, in their order.
        """
        _launch_crop(
            self._stream,
            rois,
            packed,
            objects,
            {"scores": self._exclusive, **self._grid, **self._to_input},
        )

    def planes(self) -> DeviceArray:
        """Return :attr:`current` at the size of the frame, (K, h, w) float32."""
        assert self._planes is not None
        self._stream.launch(
            "scores_at_frame",
            scores=self.current,
            objects=len(self._object_ids),
            height=self._frame_hw[0],
            width=self._frame_hw[1],
            planes=self._planes,
            **self._grid,
            **self._to_input,
        )
        return self._planes

    def commit(self) -> None:
        """Make the current scores those of the last committed frame."""
        self._stream.copy(self.current, self._committed)

    @property
    def _in_frame(self) -> Arguments:
        """Return the sizes, and the scale from the engine's input to the frame."""
        (height, width), (input_height, input_width) = self._frame_hw, self._size_hw
        return {
            "objects": len(self._object_ids),
            "height": height,
            "width": width,
            "scale_x": width / input_width,
            "scale_y": height / input_height,
            **self._grid,
        }

    @property
    def _to_input(self) -> Arguments:
        """Return the scale from the frame to the input of the features engine."""
        return {
            "scale_x": self._size_hw[1] / self._frame_hw[1],
            "scale_y": self._size_hw[0] / self._frame_hw[0],
        }


def crop_without_scores(
    device: KernelDevice, rois: DeviceArray, packed: DeviceArray, objects: DeviceArray | None
) -> None:
    """Write 0.5 to the score channel of a network without a target model.

    Args:
        device: Runs the kernel.
        rois: See :meth:`TargetScores.crop`; so are the others.
        packed: Likewise.
        objects: Likewise.
    """
    none: Arguments = {
        "scores": None,
        "grid_height": 0,
        "grid_width": 0,
        "scale_x": 0.0,
        "scale_y": 0.0,
    }
    _launch_crop(device, rois, packed, objects, none)


def _launch_crop(
    device: KernelDevice,
    rois: DeviceArray,
    packed: DeviceArray,
    objects: DeviceArray | None,
    scores: Arguments,
) -> None:
    slots, channels, size, _ = packed.shape
    suffix = "f16" if packed.dtype == np.float16 else "f32"
    device.launch(
        f"crop_scores_{suffix}",
        rois=rois,
        objects=objects,
        slots=slots,
        channels=channels,
        size=size,
        packed=packed,
        **scores,
    )


def _rows(array: Float32Array) -> Float32Array:
    return np.ascontiguousarray(array, np.float32)

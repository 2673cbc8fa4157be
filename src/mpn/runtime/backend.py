"""Define the interface between the order of a frame and its arrays.

:mod:`mpn.runtime.frame` runs the stages of a frame in order. A backend holds the planes of all
objects and implements each stage: :class:`mpn.runtime.host.backend.HostBackend` in NumPy and
OpenCV, :class:`mpn.runtime.device.backend.DeviceBackend` in CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mpn.runtime.candidates import Candidates
from mpn.runtime.target import Targets
from mpn.runtime.tracks import Measured
from mpn.types import Float32Array, Roi, StepResult, UInt8Array

if TYPE_CHECKING:
    from mpn.runtime.host.flow import PreparedFrame
    from mpn.runtime.state import VideoState

FrameT = TypeVar("FrameT")
"""A backend's handle of one frame."""


@dataclass(frozen=True)
class FrameMemory:
    """Arrays of the current frame on the host. Replaced as a whole, never changed.

    Attributes:
        frame: (h, w, 3) uint8 RGB at working size.
        flow_frame: The frame, prepared for flow; unused if a flow engine runs on a device.
        prob: (K, h, w) float32, merged; input of the next warp. Read-only.
        result_prob: (K, H, W) float32, source of the labels: ``prob`` at input size (the same array
            if the sizes agree), or the output of CRF. Read-only, since the caller gets it.
        soft_prob: ``result_prob`` before CRF; the same array without CRF.
        targets: Classifiers of the target model; None if it is not in use.
        scores: (K, gh, gw) float32, its scores in the frame; None likewise.
        features: (C, gh, gw) float32; None if the features engine did not run in the frame.
    """

    frame: UInt8Array
    flow_frame: PreparedFrame
    prob: Float32Array
    result_prob: Float32Array
    soft_prob: Float32Array
    targets: Targets | None = None
    scores: Float32Array | None = None
    features: Float32Array | None = None

    def __post_init__(self) -> None:
        self.prob.setflags(write=False)
        self.result_prob.setflags(write=False)


@dataclass(frozen=True)
class OsvosMaps:
    """OSVOS of one frame on the host.

    Attributes:
        rgb: (h, w, 3) uint8 RGB, the frame at working size.
        planes: Per object (h, w) float32 foreground probability; None: OSVOS did not run for it.
    """

    rgb: UInt8Array
    planes: tuple[Float32Array | None, ...]


@dataclass(frozen=True)
class FramePlan:
    """Stages that a frame runs.

    Attributes:
        osvos_for: Per object whether OSVOS runs for it.
        runs_features: Whether the features engine of the target model runs.
        use_propagation: Whether the propagation network runs.
        scores_agreement: Whether OSVOS and colours are compared with the candidates on the device.
        blends: Whether OSVOS is averaged with the propagation.
        use_crf: Whether DenseCRF runs.
    """

    osvos_for: tuple[bool, ...]
    runs_features: bool
    use_propagation: bool
    scores_agreement: bool
    blends: bool
    use_crf: bool

    @property
    def needs_osvos(self) -> bool:
        """Whether OSVOS runs for any object."""
        return any(self.osvos_for)


@dataclass(frozen=True)
class Readback:
    """Results of one frame on the host.

    Attributes:
        labels: (H, W) uint8 ids at input size.
        measured: Per object its area, box and confidence in the labels.
        bounds: Per object a box at working size outside which its merged probability is exactly 0.
        rois: Per object the input region of the propagation network; None if it is lost.
        agreement: Per object the means of OSVOS and of the colour log ratio over its candidate, or
            None without a pixel. Empty on the host, which compares the arrays themselves.
        probs: (K, H, W) float32, or a function that copies them from the device.
        scores: (K, gh, gw) float32 of the target model in the frame; None if it is not in use.
    """

    labels: UInt8Array
    measured: tuple[Measured, ...]
    bounds: tuple[Roi | None, ...]
    rois: tuple[Roi | None, ...]
    agreement: tuple[tuple[float, float] | None, ...]
    probs: Float32Array | Callable[[], Float32Array]
    scores: Float32Array | None = None


class FrameBackend(Protocol[FrameT]):
    """Planes of all objects of one video, and the stages of one frame on them.

    On a device each method enqueues its work and returns. Only :meth:`candidates`,
    :meth:`osvos_maps`, :meth:`readback`, :meth:`snapshot` and :meth:`wait` wait.

    Results of a frame replace those of the frame before in :meth:`commit` only, so that a frame
    that fails changes nothing.
    """

    @property
    def queue(self) -> QueuedBackend[FrameT] | None:
        """This backend if it enqueues work; None if a stage returns when it is done."""

    @property
    def supports_prefetch(self) -> bool:
        """Whether :meth:`prefetch` makes the next frame faster."""

    def frame_shape(self, rgb: Any) -> tuple[int, ...]:
        """Return the shape of a frame.

        Raises:
            InputError: If it is not (H, W, 3) uint8 in memory that the backend can read.
        """

    def to_host(self, rgb: Any) -> UInt8Array:
        """Return a frame as a NumPy array."""

    def load(self, state: VideoState, memory: FrameMemory) -> None:
        """Replace the state: labels of the user, or results found earlier.

        Args:
            state: Ids, boxes and colours of all objects.
            memory: Arrays of the frame.
        """

    def wait(self) -> None:
        """Wait on the host for all work, that of prefetched frames included."""

    def snapshot(self) -> FrameMemory:
        """Return the arrays of the last committed frame; waits for all work."""

    def ingest(
        self, rgb: Any, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> FrameT:
        """Take the next frame: copy, resize, flow.

        Args:
            rgb: (H, W, 3) uint8 RGB; on a device also an array in its memory.
            osvos_for: Per object whether OSVOS should start for it now; empty: for none.
            runs_features: Whether the features engine should start now.

        Raises:
            EngineError: If the flow fails.
        """

    def prefetch(
        self, rgb: Any, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> None:
        """Start :meth:`ingest` for the frame after the current one, and return.

        Args:
            rgb: As for :meth:`ingest`, which must get the same array later, unchanged.
            osvos_for: As for :meth:`ingest`.
            runs_features: As for :meth:`ingest`.
        """

    def warp(self, frame: FrameT) -> None:
        """Warp the objects into the frame: flow check, colours and ROIs included."""

    def candidates(self) -> Candidates:
        """Return the result of :meth:`warp` on the host."""

    def score(self, frame: FrameT, *, runs_features: bool) -> None:
        """Compute the scores of the target model; nothing if it is not in use.

        Args:
            frame: The current frame.
            runs_features: Whether the features engine runs; otherwise the scores of the frame
                before are warped.

        Raises:
            EngineError: If the engine fails or its output is not finite; on a device the latter is
                raised by :meth:`readback`.
        """

    def osvos_maps(self, frame: FrameT, osvos_for: Sequence[bool]) -> OsvosMaps:
        """Run OSVOS and return its maps on the host.

        Without OSVOS the maps are the scores of the target model, see :meth:`score`.

        Args:
            frame: The current frame.
            osvos_for: Per object whether OSVOS runs for it.

        Raises:
            EngineError: If an engine fails or its output is not finite.
        """

    def set_candidates(self, candidates: Candidates, maps: OsvosMaps | None) -> None:
        """Replace the result of :meth:`warp`, and give :meth:`merge` these maps."""

    def grow_rois(self, frame: FrameT) -> None:
        """Lower the scores by the other objects' candidates, and extend the ROIs by them.

        Nothing if the target model is not in use.
        """

    def propagate(self, frame: FrameT) -> None:
        """Crop, run the propagation network of each object, and paste.

        Raises:
            EngineError: If an engine fails or its output is not finite; on a device the latter is
                raised by :meth:`readback`.
        """

    def merge(self, frame: FrameT, *, use_crops: bool, blends: bool) -> None:
        """Blend with OSVOS and merge all objects.

        Args:
            frame: The current frame.
            use_crops: Whether :meth:`propagate` ran; otherwise the candidates are merged.
            blends: Whether OSVOS is averaged with the propagation.
        """

    def refine(self, frame: FrameT) -> None:
        """Refine the merged probabilities by DenseCRF."""

    def emit(self) -> None:
        """Compute labels and measurements at input size."""

    def readback(self) -> Readback:
        """Return the results of the frame; on a device this waits for it.

        Raises:
            EngineError: If the output of a network is not finite.
        """

    def commit(self, frame: FrameT) -> None:
        """Make the frame the current one."""

    def learn(self, weights: Mapping[int, float]) -> None:
        """Update the target model from the masks of the last committed frame.

        Nothing if the features engine did not run in it.

        Args:
            weights: Object id -> weight of the frame, above 0, for the objects to update.
        """

    def rollback(self) -> None:
        """Drop all work since the last :meth:`commit`."""

    def close(self) -> None:
        """Release all memory; closing twice is allowed."""


class QueuedBackend(FrameBackend[FrameT], Protocol[FrameT]):
    """A backend that enqueues its work on streams and in graphs; the host continues."""

    def run_features(self, frame: FrameT) -> None:
        """Enqueue the features engine on a separate stream, unless it ran.

        The stream of the objects then waits for it, not the host.
        """

    def run_osvos(self, frame: FrameT, osvos_for: Sequence[bool]) -> None:
        """Enqueue OSVOS on a separate stream, unless it ran for these objects."""

    def wait_for_osvos(self, frame: FrameT) -> None:
        """Make the stream of the objects wait for OSVOS of the frame, not the host."""

    def score_agreement(self, frame: FrameT) -> None:
        """Compare OSVOS and colours with the candidates: see :class:`Readback`."""

    def segment(self, name: str, frame: FrameT, key: Hashable, work: Callable[[], None]) -> None:
        """Run ``work``, or launch it as a graph.

        Args:
            name: Name of the segment, one of :data:`mpn.runtime.timing.STAGES`.
            frame: The current frame.
            key: All values that decide which work is enqueued, except for the frame.
            work: Enqueues the same work for the same frame slot and key.
        """


class LazyStepResult(StepResult):
    """A :class:`mpn.types.StepResult` that copies ``probs`` when it is first read.

    On a device the copy must happen before the next frame, which overwrites them; after that,
    reading them raises. All other attributes stay valid. ``probs`` is given as an array, or as a
    function without arguments that copies it.
    """

    @property
    def probs(self) -> Float32Array:
        """(K, H, W) float32; see the class.

        Raises:
            InputError: If the next frame has started.
        """
        held: Float32Array | Callable[[], Float32Array] = self.__dict__["_probs"]
        if callable(held):
            held = held()
            held.setflags(write=False)
            self.__dict__["_probs"] = held
        return held

    @probs.setter
    def probs(self, value: Float32Array | Callable[[], Float32Array]) -> None:
        self.__dict__["_probs"] = value

    def __repr__(self) -> str:
        shape = (len(self.object_ids), *self.labels.shape)
        return (
            f"StepResult(index={self.index}, labels={self.labels.shape}, "
            f"probs={shape}, object_ids={self.object_ids})"
        )

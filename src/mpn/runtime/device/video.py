"""A video whose objects are followed on a device: its state there, and on the host when asked."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

from mpn.cuda.api import is_on_device
from mpn.errors import EngineError
from mpn.runtime.candidates import Candidates
from mpn.runtime.device.found import events_by_id
from mpn.runtime.device.result import DeviceStepResult
from mpn.runtime.device.sight import SeenFrame
from mpn.runtime.device.stages import DeviceStages
from mpn.runtime.device.told import Told
from mpn.runtime.flow import FlowEstimator, FlowFrame
from mpn.runtime.labelled_video import LabelledVideo
from mpn.runtime.object_engines import ObjectAdapterLike
from mpn.runtime.ops.cuda import boxes_from_rows
from mpn.runtime.options import PipelineOptions
from mpn.runtime.preprocess import resize_rgb
from mpn.runtime.state import State
from mpn.runtime.tracks import tracks_from_measured
from mpn.types import Roi, StepResult, UInt8Array


class DeviceVideo(LabelledVideo):
    """A :class:`LabelledVideo` that may be worked on by a device.

    Where it is, the state of the host is complete after what the user gives, and lags behind after
    a step until it is needed: its arrays are copied from the device then.

    Args:
        options: In force.
        flow: Where the flow comes from.
        adapter: See :class:`LabelledVideo`.
    """

    def __init__(
        self, options: PipelineOptions, flow: FlowEstimator, adapter: ObjectAdapterLike | None
    ) -> None:
        super().__init__(options, flow, adapter)
        self._device: DeviceStages | None = None
        self._given: Any = None
        self._expected: Any = None
        self._is_host_behind = False

    @property
    def looks_ahead(self) -> bool:
        """Whether :meth:`expect` makes the next frame faster."""
        return self._device is not None

    def expect(self, rgb: UInt8Array) -> None:
        """Say which frame will come after the one that :meth:`step` is given next.

        On a device its copy, its flow and, where it runs in every frame, its OSVOS are started
        beside that frame; on the host nothing happens. Results are the same either way.

        Args:
            rgb: As for :meth:`step`, which must be given this very array later, unchanged.
        """
        self._expected = rgb if self._device is not None else None

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """See :meth:`LabelledVideo.start`; on a device also with a frame that lies there."""
        return super().start(self._on_host(rgb), labels)

    def resume_at(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """See :meth:`LabelledVideo.resume_at`; on a device also with a frame that lies there."""
        return super().resume_at(self._on_host(rgb), labels)

    @abstractmethod
    def _frame_on_device(
        self, on: DeviceStages, state: State, rgb: Any
    ) -> tuple[SeenFrame, Told, Candidates]:
        """Carry the objects into a frame, up to its labels."""

    def _work_on(self, device: DeviceStages) -> None:
        """Work on a device from now on; it is closed with this."""
        self._device = device
        self._to_close.callback(device.close)

    def _taken_expected(self) -> Any:
        """The frame that will come next, once."""
        expected, self._expected = self._expected, None
        return expected

    def _step_on_device(self, on: DeviceStages, rgb: UInt8Array) -> StepResult:
        self._check_open()
        state = self._state if self._state is not None else self._started()
        if is_on_device(rgb):
            state.check_size(on.shape_of(rgb))
        else:
            state.check_frame(rgb)
        self._timer.drop_frame()
        on.overwriting()
        try:
            frame, told, found = self._frame_on_device(on, state, rgb)
        except BaseException:
            on.recover()
            raise
        tracks = tracks_from_measured(
            told.measured(),
            state.object_ids,
            found.branches,
            events=(events := events_by_id(found, state.object_ids)),
            lost_before=state.lost_ids,
        )
        on.commit(frame)
        object_ids = state.object_ids
        next_state = replace(
            state,
            index=state.index + 1,
            supports=boxes_from_rows(told.figures["merged_supports"]),
            branches=found.branches,
            events=events,
            denied_ids=frozenset(object_ids[k] for k in found.denied),
            flow_frame=state.flow_frame if frame.flow_frame is None else frame.flow_frame,
        )
        # The arrays of this state are those of an earlier frame: see _started.
        self._state, self._is_host_behind = self._trusting(next_state, tracks), True
        self._given = rgb
        for stage, seconds in on.timings(frame).items():
            self._timer.add(stage, seconds)
        return DeviceStepResult(
            index=next_state.index,
            labels=told.labels,
            probs=on.probs_loader(),  # type: ignore[arg-type]
            object_ids=object_ids,
            tracks=tracks,
            timings=self._timer.finish_frame(),
        )

    def _frame_of_host(self, rgb: Any, working_hw: tuple[int, int]) -> UInt8Array:
        """A frame at working size on the host, wherever it was given."""
        return resize_rgb(self._on_host(rgb), working_hw)

    def _on_host(self, rgb: Any) -> UInt8Array:
        """A frame on the host, wherever it was given."""
        if self._device is not None and is_on_device(rgb):
            return self._device.on_host(rgb)
        frame: UInt8Array = rgb
        return frame

    def _keep(self, state: State) -> None:
        super()._keep(state)
        self._given, self._expected, self._is_host_behind = None, None, False
        if self._device is not None:
            self._device.begin(state)

    def _started(self) -> State:
        """The state, complete on the host: what the device has made of it meanwhile included."""
        state = super()._started()
        if self._device is None or not self._is_host_behind:
            return state
        prob, soft_prob, result_prob = self._device.state_arrays()
        frame = self._frame_of_host(self._given, state.working_hw)
        everywhere = Roi(0, 0, state.input_hw[1], state.input_hw[0])
        state = replace(
            state,
            frame=frame,
            prob=prob,
            soft_prob=soft_prob,
            result_prob=result_prob,
            result_boxes=(everywhere,) * len(state.object_ids),
        )
        self._state, self._is_host_behind = state, False
        return state


class FlowOfDevice:
    """Stands for the flow that the device estimates by itself."""

    def prepare(self, rgb: UInt8Array) -> FlowFrame:
        """Nothing: the device prepares its own frames."""
        return FlowFrame(rgb, (rgb.shape[0], rgb.shape[1]))

    def between(self, frame0: FlowFrame, frame1: FlowFrame) -> Any:
        """Nobody asks.

        Raises:
            EngineError: Always.
        """
        raise EngineError("the flow of a frame on a device is not estimated on the host")

    both_ways = between

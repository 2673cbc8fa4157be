"""Frames as they come in: copied to the device, and what needs images only, the flow and OSVOS.

Each frame has a place of its own in device memory until the one after the next needs it. Two
streams work here, beside the one that carries the objects: nothing here waits for a mask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.api import Event, Stream
from mpn.cuda.array import DeviceArray
from mpn.engines.base import DeviceEngine
from mpn.engines.open import EngineSet
from mpn.errors import InputError
from mpn.runtime.device.graphs import (
    GraphCache,
    StreamTimer,
    array_from_tensor,
    device_engine,
    dtype_name,
    network_hw,
)
from mpn.runtime.device.images import (
    flow_input,
    osvos_input,
    resize_flow,
    resize_prob,
    resize_rgb,
)
from mpn.runtime.host.flow import FlowEstimator, FlowFrame
from mpn.runtime.host.preprocess import resize_rgb as resize_rgb_on_host
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.options import DeviceOptions, PipelineOptions
from mpn.types import UInt8Array

PLACES = 3
"""The frame before, the current one, and the next."""


@dataclass
class SeenFrame:
    """One frame on the device.

    Attributes:
        place: Which of the :data:`PLACES` it lies in.
        staging: (H, W, 3) uint8, pinned: where a frame of the host is copied from.
        rgb: (H, W, 3) uint8, at input size.
        frame: (h, w, 3) uint8, at working size.
        flow_to_prev_px: (2, h, w) float32, from this frame to the one before.
        flow_from_prev_px: The same back, on the grid of the one before; None without flow check.
        planes: (P, h, w) float32 of OSVOS: the common network's, then the objects' own.
        flags: (P,) int32: whether a plane's network answered with what is not finite.
        given: The caller's array, by which the frame is known again.
        flow_frame: Prepared for a flow that the host estimates; None otherwise.
        seen: Behind the frame; ``flow`` behind its flow; ``osvos`` behind its planes.
        plane_of: For each object its plane, or -1: OSVOS did not run for it. Empty: not at all.
        is_done: Whether the host has waited for everything that reads the staging array.
    """

    place: int
    staging: npt.NDArray[np.uint8]
    rgb: DeviceArray
    frame: DeviceArray
    flow_to_prev_px: DeviceArray
    flow_from_prev_px: DeviceArray | None
    planes: DeviceArray | None
    flags: DeviceArray | None
    given: Any = None
    flow_frame: FlowFrame | None = None
    seen: Event | None = None
    flow: Event | None = None
    osvos: Event | None = None
    plane_of: tuple[int, ...] = ()
    is_done: bool = True
    watches: tuple[StreamTimer, ...] = field(default=())

    def has_osvos_for(self, wanted: Sequence[bool]) -> bool:
        """Whether OSVOS was started for just these objects."""
        return len(self.plane_of) == len(wanted) and all(
            (plane >= 0) == is_wanted
            for plane, is_wanted in zip(self.plane_of, wanted, strict=True)
        )


class Sight:
    """Takes frames in.

    Args:
        stream: The stream of the objects; two others are made beside it.
        engines: Open engines.
        objects: The objects' own engines.
        options: The pipeline's, in force.
        device_options: How the device is used.
        host_flow: Estimates the flow on the host, where no engine does.

    Raises:
        EngineError: If an engine takes host memory only, or its size is not fixed.
    """

    def __init__(
        self,
        stream: Stream,
        engines: EngineSet,
        objects: ObjectEngines,
        options: PipelineOptions,
        device_options: DeviceOptions,
        *,
        host_flow: FlowEstimator | None,
    ) -> None:
        self._engines, self._objects, self._options = engines, objects, options
        self._host_flow = host_flow
        self._flow_stream = stream.create_stream() if device_options.use_streams else stream
        self._osvos_stream = stream.create_stream() if device_options.use_streams else stream
        flow = None if engines.flow is None else device_engine(engines.flow)
        self._flow_engine = flow if host_flow is None else None
        self._osvos_engine = None if engines.osvos is None else device_engine(engines.osvos)
        self._use_graphs = device_options.use_graphs
        self._flow_segments = GraphCache(self._flow_stream, is_capturing=False)
        self._osvos_segments = GraphCache(self._osvos_stream, is_capturing=False)
        self._places: list[SeenFrame] = []
        self._current: SeenFrame | None = None
        self._ahead: deque[SeenFrame] = deque(maxlen=PLACES - 1)
        self._working_hw = (0, 0)
        self._own_planes: dict[int, int] = {}
        self._no_flags: DeviceArray | None = None

    @property
    def flow_is_of_host(self) -> bool:
        """Whether the flow is estimated on the host."""
        return self._flow_engine is None

    def begin(
        self,
        frame: UInt8Array,
        flow_frame: FlowFrame | None,
        input_hw: tuple[int, int],
        object_ids: Sequence[int],
    ) -> None:
        """Begin at a frame, with other objects or engines or sizes than before.

        Args:
            frame: (h, w, 3) uint8 RGB at working size.
            flow_frame: The frame prepared for flow, where the host estimates it.
            input_hw: (H, W) of the frames to come.
            object_ids: Whose own engines are looked for.
        """
        self.wait()
        working_hw = (frame.shape[0], frame.shape[1])
        own = [k for k in object_ids if self._objects.get("osvos", k) is not None]
        self._own_planes = {k: 1 + n for n, k in enumerate(own)}
        engines = [self._engine_of(k) for k in (None, *own) if self._osvos_engine is not None]
        self._prepare(engines)  # before they are asked whether they can be captured
        flow = [] if self._flow_engine is None else [self._flow_engine]
        self._flow_segments = self._new_segments(self._flow_stream, flow)
        self._osvos_segments = self._new_segments(self._osvos_stream, engines)
        self._working_hw = working_hw
        if engines:
            self._no_flags = self._osvos_stream.zeros((len(engines),), np.int32)
        self._places = [self._place(n, input_hw, working_hw) for n in range(PLACES)]
        self._ahead.clear()
        current = self._places[0]
        current.flow_frame = flow_frame
        self._flow_stream.upload(frame, current.frame)
        current.seen = self._flow_stream.record()
        current.seen.sync()
        self._current = current

    def frame_for(self, given: Any, *, osvos_for: Sequence[int] = ()) -> SeenFrame:
        """The frame of an array: expected already, or from now on.

        Args:
            given: (H, W, 3) uint8: NumPy, or an array in device memory.
            osvos_for: See :meth:`look_ahead`.
        """
        if not self._ahead or self._ahead[0].given is not given:
            self._ahead.clear()
            self.look_ahead(given, osvos_for=osvos_for)
        return self._ahead[0]

    def look_ahead(self, given: Any, *, osvos_for: Sequence[int] = ()) -> None:
        """Start with the frame behind the last one that was given here.

        Args:
            given: The frame; it must not change until it was asked for.
            osvos_for: The ids of all objects, if OSVOS shall run for them; empty if not.
        """
        if any(frame.given is given for frame in self._ahead):
            return
        before = self._ahead[-1] if self._ahead else self._current
        assert before is not None
        held = {id(self._current), *map(id, self._ahead)}
        frame = next(place for place in self._places if id(place) not in held)
        self._take_in(frame, given)
        self._see_flow(frame, before)
        frame.plane_of, frame.osvos = (), None
        if osvos_for:
            self.see_osvos(frame, osvos_for, [True] * len(osvos_for))
        self._ahead.append(frame)

    def see_osvos(
        self, frame: SeenFrame, object_ids: Sequence[int], wanted: Sequence[bool]
    ) -> None:
        """Run OSVOS on a frame, the common engine at most once.

        Args:
            frame: Where its planes go, and ``plane_of``.
            object_ids: The K ids.
            wanted: For which of them.
        """
        assert frame.planes is not None
        assert frame.flags is not None
        assert frame.seen is not None
        plane_of = tuple(
            self._own_planes.get(k, 0) if is_wanted else -1
            for k, is_wanted in zip(object_ids, wanted, strict=True)
        )
        stream, numbers = self._osvos_stream, sorted(set(plane_of) - {-1})
        stream.wait(frame.seen)
        watch = StreamTimer(stream)
        with watch.stage("osvos"):
            self._osvos_segments.run(
                (frame.place, tuple(numbers)), lambda: self._run_osvos(frame, numbers)
            )
        frame.watches += (watch,)
        frame.plane_of, frame.osvos = plane_of, stream.record()

    def commit(self, frame: SeenFrame) -> None:
        """Go on from a frame; the host has waited for all that reads it but the next flow."""
        assert frame is self._ahead[0]
        self._ahead.popleft()
        self._current = frame
        frame.is_done = True

    def wait(self) -> None:
        """Make the host wait for both streams, where the engines are to run otherwise."""
        for stream in (self._flow_stream, self._osvos_stream):
            stream.record().sync()

    def forget_ahead(self) -> None:
        """Forget what was taken in behind the current frame: its arrays may be filled anew."""
        self._ahead.clear()

    def release(self) -> None:
        """Forget the frames; the memory goes with them."""
        self._places.clear()
        self._ahead.clear()
        self._current = None
        self._flow_segments.clear()
        self._osvos_segments.clear()

    def _take_in(self, frame: SeenFrame, given: Any) -> None:
        stream = self._flow_stream
        if not frame.is_done and frame.seen is not None:
            frame.seen.sync()  # it was expected and never asked for: its staging may be in use
        if frame.osvos is not None:
            stream.wait(frame.osvos)
        watch = StreamTimer(stream)
        with watch.stage("input"):
            if isinstance(given, np.ndarray):
                np.copyto(frame.staging, given)
                stream.upload_async(frame.staging, frame.rgb)
            else:
                stream.copy(stream.array_from(given), frame.rgb)
            resize_rgb(stream, frame.rgb, self._working_hw, out=frame.frame)
        frame.given, frame.is_done = given, False
        frame.seen, frame.watches = stream.record(), (watch,)

    def _see_flow(self, frame: SeenFrame, before: SeenFrame) -> None:
        stream = self._flow_stream
        watch = StreamTimer(stream)
        with watch.stage("flow"):
            if self._flow_engine is None:
                self._flow_of_host(frame, before)
            else:
                self._flow_segments.run(
                    (frame.place, before.place), lambda: self._run_flow(frame, before)
                )
        frame.watches += (watch,)
        frame.flow = stream.record()

    def _run_flow(self, frame: SeenFrame, before: SeenFrame) -> None:
        self._flow_between(frame.frame, before.frame, frame.flow_to_prev_px)
        if frame.flow_from_prev_px is not None:
            self._flow_between(before.frame, frame.frame, frame.flow_from_prev_px)

    def _flow_between(self, frame0: DeviceArray, frame1: DeviceArray, out: DeviceArray) -> None:
        engine, stream = self._flow_engine, self._flow_stream
        assert engine is not None
        inputs, size_hw = engine.buffers().inputs, network_hw(engine)
        for name, frame in (("frame0", frame0), ("frame1", frame1)):
            buffer = array_from_tensor(inputs[name])
            flow_input(stream, frame, size_hw, dtype=dtype_name(buffer), out=buffer)
        answer = array_from_tensor(engine.enqueue(stream.address).outputs["flow_px"])
        flow_px = answer.reshape(2, *answer.shape[2:])
        if resize_flow(stream, flow_px, self._working_hw, out=out) is flow_px:
            stream.copy(flow_px, out)

    def _flow_of_host(self, frame: SeenFrame, before: SeenFrame) -> None:
        assert self._host_flow is not None
        if not isinstance(frame.given, np.ndarray):
            raise InputError(
                "the frame is in device memory, but these engines take their flow from OpenCV DIS, "
                "which works on the host: give NumPy frames, or use engines with a flow network"
            )
        small = resize_rgb_on_host(frame.given, self._working_hw)
        frame.flow_frame = self._host_flow.prepare(small)
        assert before.flow_frame is not None
        pairs = [(frame.flow_frame, before.flow_frame, frame.flow_to_prev_px)]
        if frame.flow_from_prev_px is not None:
            pairs.append((before.flow_frame, frame.flow_frame, frame.flow_from_prev_px))
        for from_frame, to_frame, out in pairs:
            self._flow_stream.upload(self._host_flow.between(from_frame, to_frame), out)

    def _run_osvos(self, frame: SeenFrame, numbers: Sequence[int]) -> None:
        assert frame.planes is not None
        assert frame.flags is not None
        stream, own = self._osvos_stream, {n: k for k, n in self._own_planes.items()}
        assert self._no_flags is not None
        stream.copy(self._no_flags, frame.flags)
        preprocessing, threshold = (
            self._engines.manifest.preprocessing.osvos,
            self._options.osvos_threshold,
        )
        height, width = self._working_hw
        for number in numbers:
            engine = self._engine_of(own.get(number))
            image = array_from_tensor(engine.buffers().inputs["image"])
            osvos_input(
                stream,
                frame.frame,
                network_hw(engine),
                channel_order=preprocessing.channel_order,
                mean=preprocessing.mean,
                dtype=dtype_name(image),
                out=image,
            )
            answer = array_from_tensor(engine.enqueue(stream.address).outputs["prob"])
            flag = frame.flags.part(number, number + 1)
            stream.launch("flag_not_finite_f32", values=answer, count=answer.size, flag=flag)
            prob = answer.reshape(1, *answer.shape[2:])
            plane = frame.planes.part(number, number + 1)
            if resize_prob(stream, prob, self._working_hw, out=plane) is prob:
                stream.copy(prob, plane)
            if threshold != 0.5:
                less = (1 - threshold) / threshold
                stream.launch("shift_odds", pixels=height * width, less=less, plane=plane)

    def _engine_of(self, object_id: int | None) -> DeviceEngine:
        """An object's own OSVOS, or the common one."""
        if object_id is None:
            assert self._osvos_engine is not None
            return self._osvos_engine
        own = self._objects.get("osvos", object_id)
        assert own is not None
        return device_engine(own, object_id=object_id)

    def _new_segments(self, stream: Stream, engines: Sequence[DeviceEngine]) -> GraphCache:
        can_be_captured = bool(engines) and all(engine.can_be_captured for engine in engines)
        return GraphCache(stream, is_capturing=self._use_graphs and can_be_captured)

    def _prepare(self, osvos: Sequence[DeviceEngine]) -> None:
        if self._flow_engine is not None:
            self._flow_engine.prepare(self._flow_stream.address)
        for engine in osvos:
            engine.prepare(self._osvos_stream.address)

    def _place(
        self, number: int, input_hw: tuple[int, int], working_hw: tuple[int, int]
    ) -> SeenFrame:
        stream = self._flow_stream
        rgb = stream.empty((*input_hw, 3), np.uint8)
        flow_hw = (2, *working_hw)
        has_osvos = self._osvos_engine is not None
        planes = 1 + len(self._own_planes)
        return SeenFrame(
            place=number,
            staging=stream.pinned((*input_hw, 3), np.uint8),
            rgb=rgb,
            frame=rgb if input_hw == working_hw else stream.empty((*working_hw, 3), np.uint8),
            flow_to_prev_px=stream.empty(flow_hw, np.float32),
            flow_from_prev_px=(
                stream.empty(flow_hw, np.float32) if self._options.flow_check_px else None
            ),
            planes=stream.empty((planes, *working_hw), np.float32) if has_osvos else None,
            flags=stream.zeros((planes,), np.int32) if has_osvos else None,
        )

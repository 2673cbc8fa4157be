"""Copy frames to the device, and run the networks that need images only.

These are flow, OSVOS and features.

Each frame has a slot in device memory until the frame after the next needs it. Three streams do
this work, separate from the stream of the objects: nothing here waits for a mask.
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
from mpn.runtime.device.target import FeaturesRunner
from mpn.runtime.host.flow import FlowEstimator, PreparedFrame
from mpn.runtime.host.preprocess import resize_rgb as resize_rgb_on_host
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.options import DeviceOptions, ResolvedOptions
from mpn.types import UInt8Array

RING_SIZE = 3
"""Slots: the frame before, the current one, and the next."""


@dataclass
class DeviceFrame:
    """One frame on the device.

    Attributes:
        slot: Index of its slot in the ring.
        staging: (H, W, 3) uint8, pinned: source of the copy of a host frame.
        rgb: (H, W, 3) uint8, at input size.
        frame: (h, w, 3) uint8, at working size.
        flow_to_prev_px: (2, h, w) float32, from this frame to the one before.
        flow_from_prev_px: The same back, on the grid of the one before; None without flow check.
        planes: (P, h, w) float32 of OSVOS: the common network's, then the objects' own.
        flags: (P,) int32: per plane 1 if the output of its network is not finite.
        features: (C, gh, gw) of the target model's features engine.
        given: The caller's array, which identifies the frame.
        flow_frame: Prepared for a flow that the host estimates; None otherwise.
        ready: Event after the copy; ``flow`` after its flow; ``osvos`` after its planes;
            ``features_done`` after its features, None if their engine does not run.
        plane_of: Per object its plane, or -1 if OSVOS did not run for it. Empty: for none.
        is_done: Whether the host has waited for all that reads the staging array.
        watches: Timers of the work on it.
    """

    slot: int
    staging: npt.NDArray[np.uint8]
    rgb: DeviceArray
    frame: DeviceArray
    flow_to_prev_px: DeviceArray
    flow_from_prev_px: DeviceArray | None
    planes: DeviceArray | None
    flags: DeviceArray | None
    features: DeviceArray | None
    given: Any = None
    flow_frame: PreparedFrame | None = None
    ready: Event | None = None
    flow: Event | None = None
    osvos: Event | None = None
    features_done: Event | None = None
    plane_of: tuple[int, ...] = ()
    is_done: bool = True
    watches: tuple[StreamTimer, ...] = field(default=())

    def has_osvos_for(self, osvos_for: Sequence[bool]) -> bool:
        """Return whether OSVOS was enqueued for just these objects."""
        return len(self.plane_of) == len(osvos_for) and all(
            (plane >= 0) == is_needed
            for plane, is_needed in zip(self.plane_of, osvos_for, strict=True)
        )


class FrameIngest:
    """Copy frames to a ring of slots, and enqueue their flow and OSVOS.

    Args:
        stream: The stream of the objects; the ingest creates others.
        engines: Open engines.
        objects: The objects' own engines.
        options: The pipeline's, in force.
        device_options: How the device is used.
        host_flow: Estimates the flow on the host; None: the flow engine does.
        has_target: Whether the target model is in use.

    Raises:
        EngineError: If an engine takes host memory only, or its size is not fixed.
    """

    def __init__(
        self,
        stream: Stream,
        engines: EngineSet,
        objects: ObjectEngines,
        options: ResolvedOptions,
        device_options: DeviceOptions,
        *,
        host_flow: FlowEstimator | None,
        has_target: bool = False,
    ) -> None:
        self._engines, self._objects, self._options = engines, objects, options
        self._host_flow = host_flow
        self._flow_stream = stream.create_stream() if device_options.use_streams else stream
        self._osvos_stream = stream.create_stream() if device_options.use_streams else stream
        flow = None if engines.flow is None else device_engine(engines.flow)
        self._flow_engine = flow if host_flow is None else None
        self._osvos_engine = None if engines.osvos is None else device_engine(engines.osvos)
        self._use_graphs = device_options.use_graphs
        self._features: FeaturesRunner | None = None
        if has_target:
            assert engines.features is not None
            self._features = FeaturesRunner(
                stream.create_stream() if device_options.use_streams else stream,
                device_engine(engines.features),
                use_graphs=device_options.use_graphs,
            )
        self._flow_graphs = GraphCache(self._flow_stream, is_capturing=False)
        self._osvos_graphs = GraphCache(self._osvos_stream, is_capturing=False)
        self._ring: list[DeviceFrame] = []
        self._current: DeviceFrame | None = None
        self._ahead: deque[DeviceFrame] = deque(maxlen=RING_SIZE - 1)
        self._working_hw = (0, 0)
        self._object_ids: tuple[int, ...] = ()
        self._own_planes: dict[int, int] = {}
        self._no_flags: DeviceArray | None = None

    @property
    def is_flow_of_host(self) -> bool:
        """Whether the flow is estimated on the host."""
        return self._flow_engine is None

    @property
    def current(self) -> DeviceFrame:
        """The last committed frame."""
        assert self._current is not None
        return self._current

    def begin(
        self,
        frame: UInt8Array,
        flow_frame: PreparedFrame | None,
        input_hw: tuple[int, int],
        object_ids: Sequence[int],
    ) -> None:
        """Start at a frame, with new objects, engines or sizes.

        Args:
            frame: (h, w, 3) uint8 RGB at working size.
            flow_frame: The frame prepared for flow, if the host estimates it.
            input_hw: (H, W) of the frames that follow.
            object_ids: The K ids.
        """
        self.wait()
        working_hw = (frame.shape[0], frame.shape[1])
        self._object_ids = tuple(object_ids)
        own = [k for k in object_ids if self._objects.get("osvos", k) is not None]
        self._own_planes = {k: 1 + n for n, k in enumerate(own)}
        engines = [self._engine_of(k) for k in (None, *own) if self._osvos_engine is not None]
        self._prepare(engines)  # before supports_graph_capture is read
        flow = [] if self._flow_engine is None else [self._flow_engine]
        self._flow_graphs = self._new_graph_cache(self._flow_stream, flow)
        self._osvos_graphs = self._new_graph_cache(self._osvos_stream, engines)
        if self._features is not None:
            self._features.begin()
        self._working_hw = working_hw
        if engines:
            self._no_flags = self._osvos_stream.zeros((len(engines),), np.int32)
        self._ring = [self._allocate_slot(n, input_hw, working_hw) for n in range(RING_SIZE)]
        self._ahead.clear()
        current = self._ring[0]
        current.flow_frame = flow_frame
        self._flow_stream.upload(frame, current.frame)
        current.ready = self._flow_stream.record()
        current.ready.sync()
        self._current = current

    def take(
        self, given: Any, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> DeviceFrame:
        """Return the frame of an array: prefetched, or enqueued now.

        Args:
            given: (H, W, 3) uint8: NumPy, or an array in device memory.
            osvos_for: See :meth:`prefetch`.
            runs_features: Likewise.
        """
        if not self._ahead or self._ahead[0].given is not given:
            self._ahead.clear()
            self.prefetch(given, osvos_for=osvos_for, runs_features=runs_features)
        return self._ahead[0]

    def prefetch(
        self, given: Any, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> None:
        """Enqueue copy, flow, features and OSVOS of the next frame.

        It is the frame after the last one that was given here.

        Args:
            given: The frame; it must not change until :meth:`take` gets it.
            osvos_for: Per object whether OSVOS runs for it; empty: for none.
            runs_features: Whether the features engine runs.
        """
        if any(frame.given is given for frame in self._ahead):
            return
        before = self._ahead[-1] if self._ahead else self.current
        held = {id(self._current), *map(id, self._ahead)}
        frame = next(slot for slot in self._ring if id(slot) not in held)
        self._upload(frame, given)
        self._enqueue_flow(frame, before)
        frame.plane_of, frame.osvos, frame.features_done = (), None, None
        if runs_features:
            self.enqueue_features(frame)
        if osvos_for:
            self.enqueue_osvos(frame, osvos_for)
        self._ahead.append(frame)

    def enqueue_features(self, frame: DeviceFrame) -> None:
        """Enqueue the features engine on a frame."""
        assert self._features is not None
        assert frame.features is not None
        assert frame.ready is not None
        frame.features_done, watch = self._features.enqueue(
            frame.slot, frame.frame, frame.ready, frame.features
        )
        frame.watches += (watch,)

    def enqueue_osvos(self, frame: DeviceFrame, osvos_for: Sequence[bool]) -> None:
        """Enqueue OSVOS on a frame, the common engine at most once.

        Args:
            frame: Takes the planes, and ``plane_of``.
            osvos_for: Per object whether OSVOS runs for it.
        """
        assert frame.planes is not None
        assert frame.flags is not None
        assert frame.ready is not None
        plane_of = tuple(
            self._own_planes.get(k, 0) if is_needed else -1
            for k, is_needed in zip(self._object_ids, osvos_for, strict=True)
        )
        stream, numbers = self._osvos_stream, sorted(set(plane_of) - {-1})
        stream.wait(frame.ready)
        watch = StreamTimer(stream)
        with watch.stage("osvos"):
            self._osvos_graphs.run(
                (frame.slot, tuple(numbers)), lambda: self._run_osvos(frame, numbers)
            )
        frame.watches += (watch,)
        frame.plane_of, frame.osvos = plane_of, stream.record()

    def commit(self, frame: DeviceFrame) -> None:
        """Make a frame the current one; the host has waited for its work."""
        assert frame is self._ahead[0]
        self._ahead.popleft()
        self._current = frame
        frame.is_done = True

    def wait(self) -> None:
        """Wait on the host for all streams of the ingest."""
        streams = [self._flow_stream, self._osvos_stream]
        if self._features is not None:
            streams.append(self._features.stream)
        for stream in streams:
            stream.record().sync()

    def drop_prefetched(self) -> None:
        """Drop all frames after the current one: the caller may reuse their arrays."""
        self._ahead.clear()

    def release(self) -> None:
        """Release the memory of all frames."""
        self._ring.clear()
        self._ahead.clear()
        self._current = None
        self._flow_graphs.clear()
        self._osvos_graphs.clear()
        if self._features is not None:
            self._features.release()

    def _upload(self, frame: DeviceFrame, given: Any) -> None:
        stream = self._flow_stream
        if not frame.is_done and frame.ready is not None:
            frame.ready.sync()  # prefetched and never taken: its staging may be in use
        for still_reading in (frame.osvos, frame.features_done):
            if still_reading is not None:
                stream.wait(still_reading)
        watch = StreamTimer(stream)
        with watch.stage("input"):
            if isinstance(given, np.ndarray):
                np.copyto(frame.staging, given)
                stream.upload_async(frame.staging, frame.rgb)
            else:
                stream.copy(stream.array_from(given), frame.rgb)
            resize_rgb(stream, frame.rgb, self._working_hw, out=frame.frame)
        frame.given, frame.is_done = given, False
        frame.ready, frame.watches = stream.record(), (watch,)

    def _enqueue_flow(self, frame: DeviceFrame, before: DeviceFrame) -> None:
        stream = self._flow_stream
        watch = StreamTimer(stream)
        with watch.stage("flow"):
            if self._flow_engine is None:
                self._flow_of_host(frame, before)
            else:
                self._flow_graphs.run(
                    (frame.slot, before.slot), lambda: self._run_flow(frame, before)
                )
        frame.watches += (watch,)
        frame.flow = stream.record()

    def _run_flow(self, frame: DeviceFrame, before: DeviceFrame) -> None:
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
        output = array_from_tensor(engine.enqueue(stream.address).outputs["flow_px"])
        flow_px = output.reshape(2, *output.shape[2:])
        if resize_flow(stream, flow_px, self._working_hw, out=out) is flow_px:
            stream.copy(flow_px, out)

    def _flow_of_host(self, frame: DeviceFrame, before: DeviceFrame) -> None:
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
            self._flow_stream.upload(self._host_flow.estimate(from_frame, to_frame), out)

    def _run_osvos(self, frame: DeviceFrame, numbers: Sequence[int]) -> None:
        assert frame.planes is not None
        assert frame.flags is not None
        stream, own = self._osvos_stream, {n: k for k, n in self._own_planes.items()}
        assert self._no_flags is not None
        stream.copy(self._no_flags, frame.flags)
        preprocessing, threshold = (
            self._engines.manifest.preprocessing.osvos,
            self._options.osvos.threshold,
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
            output = array_from_tensor(engine.enqueue(stream.address).outputs["prob"])
            flag = frame.flags.part(number, number + 1)
            stream.launch("flag_not_finite_f32", values=output, count=output.size, flag=flag)
            prob = output.reshape(1, *output.shape[2:])
            plane = frame.planes.part(number, number + 1)
            if resize_prob(stream, prob, self._working_hw, out=plane) is prob:
                stream.copy(prob, plane)
            if threshold != 0.5:
                less = (1 - threshold) / threshold
                stream.launch("shift_odds", pixels=height * width, less=less, plane=plane)

    def _engine_of(self, object_id: int | None) -> DeviceEngine:
        """Return an object's own OSVOS, or the common one."""
        if object_id is None:
            assert self._osvos_engine is not None
            return self._osvos_engine
        own = self._objects.get("osvos", object_id)
        assert own is not None
        return device_engine(own, object_id=object_id)

    def _new_graph_cache(self, stream: Stream, engines: Sequence[DeviceEngine]) -> GraphCache:
        can_capture = bool(engines) and all(engine.supports_graph_capture for engine in engines)
        return GraphCache(stream, is_capturing=self._use_graphs and can_capture)

    def _prepare(self, osvos: Sequence[DeviceEngine]) -> None:
        if self._flow_engine is not None:
            self._flow_engine.prepare(self._flow_stream.address)
        for engine in osvos:
            engine.prepare(self._osvos_stream.address)

    def _allocate_slot(
        self, number: int, input_hw: tuple[int, int], working_hw: tuple[int, int]
    ) -> DeviceFrame:
        stream = self._flow_stream
        rgb = stream.empty((*input_hw, 3), np.uint8)
        flow_hw = (2, *working_hw)
        has_osvos = self._osvos_engine is not None
        planes = 1 + len(self._own_planes)
        return DeviceFrame(
            slot=number,
            staging=stream.pinned((*input_hw, 3), np.uint8),
            rgb=rgb,
            frame=rgb if input_hw == working_hw else stream.empty((*working_hw, 3), np.uint8),
            flow_to_prev_px=stream.empty(flow_hw, np.float32),
            flow_from_prev_px=(
                stream.empty(flow_hw, np.float32) if self._options.flow_check_px else None
            ),
            planes=stream.empty((planes, *working_hw), np.float32) if has_osvos else None,
            flags=stream.zeros((planes,), np.int32) if has_osvos else None,
            features=None if self._features is None else self._features.allocate(),
        )

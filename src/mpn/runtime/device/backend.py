"""The stages of a frame on a device: warp, crop, propagation, merge, CRF, output.

Their order is the pipeline's business. A stage starts its work on the stream of the objects and
returns; the host waits once, in :meth:`DeviceStages.told`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn.cuda.api import Lane
from mpn._common.closeable import Closing
from mpn.cuda.api import Stream
from mpn.cuda.array import DeviceArray
from mpn.engines.base import DeviceEngine
from mpn.engines.open import EngineSet
from mpn.errors import EngineError, InputError
from mpn.runtime.candidates import Candidates
from mpn.runtime.device.crf import CudaCrf
from mpn.runtime.device.graphs import GraphCache, StreamTimer, array_from_tensor, device_engine
from mpn.runtime.device.images import box_rows, boxes_from_rows, check_rgb_array, resize_prob
from mpn.runtime.device.ingest import SeenFrame, Sight
from mpn.runtime.device.readback import Told
from mpn.runtime.device.state import CudaFrame
from mpn.runtime.host.flow import FlowEstimator
from mpn.runtime.host.merge import not_finite_error
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.options import DeviceOptions, PipelineOptions, check_options
from mpn.runtime.state import State
from mpn.types import Float32Array, TrackBranch, UInt8Array


@dataclass(frozen=True)
class _Batch:
    """Objects whose crops go through one run of one engine.

    Attributes:
        engine: Common, or an object's own.
        members: Their indices.
        rows: The same on the device; None: all objects in their order.
        packed: (N, 4, S, S): the engine's input.
        mirrored: (N, 4, S, S), behind it: where the same crops go mirrored; None without.
        object_id: Whose own engine it is; None for the common one.
    """

    engine: DeviceEngine
    members: tuple[int, ...]
    rows: DeviceArray | None
    packed: DeviceArray
    mirrored: DeviceArray | None
    object_id: int | None

    @property
    def crops(self) -> int:
        """Crops that go through the engine in one frame."""
        return len(self.members) * (1 if self.mirrored is None else 2)


class DeviceStages(Closeable):
    """The objects of one video on a device, and what carries them from frame to frame.

    Args:
        stream: Of the objects; others are made beside it.
        engines: Open engines that take device memory.
        options: The pipeline's, in force.
        objects: The objects' own engines.
        device_options: How the device is used.
        host_flow: Estimates the flow on the host, where no engine does.

    Raises:
        EngineError: If an engine takes host memory only.
        InputError: If an option has no kernels.
    """

    def __init__(
        self,
        stream: Stream,
        engines: EngineSet,
        options: PipelineOptions,
        objects: ObjectEngines,
        *,
        device_options: DeviceOptions | None = None,
        host_flow: FlowEstimator | None = None,
    ) -> None:
        check_options(options)
        device_options = device_options or DeviceOptions()
        self._stream, self._engines = stream, engines
        self._options, self._objects = options, objects
        self._use_graphs = device_options.use_graphs
        self._propagation = device_engine(engines.propagation)
        self.sight = Sight(stream, engines, objects, options, device_options, host_flow=host_flow)
        self._segments = GraphCache(stream, is_capturing=False)
        self._is_capturing = False
        self._watch = StreamTimer(stream)
        self._inner_watch = StreamTimer(stream, is_running=False)
        self._frame: CudaFrame | None = None
        self._crf: CudaCrf | None = None
        self._plane_lists: dict[tuple[int, ...], DeviceArray] = {}
        self._frames_told = 0

    def begin(self, state: State) -> None:
        """Take over what the host knows: the user's labels, or what was found earlier.

        Graphs are forgotten: objects, engines and sizes may be others from now on.

        Args:
            state: Of the host, complete.
        """
        stream, manifest = self._stream, self._engines.manifest
        stream.record().sync()
        self._frames_told += 1
        objects, self._object_ids = len(state.object_ids), state.object_ids
        self._input_hw, self._working_hw = state.input_hw, state.working_hw
        preprocessing = manifest.preprocessing.propagation
        self._batches = self._make_batches(state.object_ids)
        self._osvos_planes = 1 + sum(
            self._objects.get("osvos", k) is not None for k in state.object_ids
        )
        self._flag_owners: list[tuple[str, int | None]] = [
            *(("propagation", batch.object_id) for batch in self._batches),
            ("OSVOS", None),
            *(("OSVOS", k) for k in state.object_ids if self._objects.get("osvos", k) is not None),
        ]
        frame = CudaFrame(
            stream,
            object_ids=state.object_ids,
            size_hw=state.working_hw,
            roi_size=manifest.roi_size,
            mean=preprocessing.mean_rgb,
            std=preprocessing.std_rgb,
            options=self._options,
            flags=len(self._flag_owners),
        )
        tables = np.stack(state.colour_tables)
        frame.start(state.prob, box_rows(state.supports), state.first_areas_px, tables)
        size = manifest.roi_size
        self._crops = stream.empty((objects, 1, size, size), np.float32)
        self._crf = None
        if self._options.crf:
            self._refined = stream.empty((objects, *state.working_hw), np.float32)
            self._crf = CudaCrf(
                stream,
                objects=objects,
                size_hw=state.working_hw,
                options=self._options.crf_options,
            )
        is_resized = state.input_hw != state.working_hw
        wide = (objects, *state.input_hw)
        self._soft_wide = stream.empty(wide, np.float32) if is_resized else frame.merged
        self._result_wide = self._soft_wide
        if self._options.crf:
            self._result_wide = stream.empty(wide, np.float32) if is_resized else self._refined
        self._labels = frame.labels
        if is_resized or self._options.crf:
            self._labels = stream.empty(state.input_hw, np.uint8)
        self._labels_told = stream.pinned(state.input_hw, np.uint8)
        self._figures_told = stream.pinned(frame.readback.buffer.shape, np.uint8)
        self._plane_lists.clear()
        self._frame = frame
        for batch in self._batches:
            batch.engine.prepare(stream.address, batch.crops)
        self._is_capturing = self._use_graphs and all(
            batch.engine.can_be_captured for batch in self._batches
        )
        self._segments = GraphCache(stream, is_capturing=self._is_capturing)
        self._inner_watch = StreamTimer(stream, is_running=not self._is_capturing)
        host_flow = state.flow_frame if self.sight.flow_is_of_host else None
        self.sight.begin(state.frame, host_flow, state.input_hw, state.object_ids)

    def segment(
        self,
        name: str,
        frame: SeenFrame,
        parts: Sequence[tuple[str, Callable[[], None]]],
        *,
        key: tuple[Any, ...] = (),
    ) -> None:
        """Start stages that are the same whenever frame's place and ``key`` are.

        Args:
            name: Of the stages together; their time where they are a graph.
            frame: The current frame.
            parts: Stages by name, in order; ``""`` for one that takes its times itself.
            key: What else decides what is started.
        """

        def work() -> None:
            for stage, start in parts:
                with self._inner_watch.stage(stage) if stage else nullcontext():
                    start()

        if not self._is_capturing:
            work()
            return
        with self._watch.stage(name):
            self._segments.run((name, frame.place, *key), work)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Time what is started inside, outside of :meth:`segment`."""
        return self._watch.stage(stage)

    def wait_for_flow(self, frame: SeenFrame) -> None:
        """Let the objects wait for the frame and its flow."""
        assert frame.flow is not None
        self._stream.wait(frame.flow)

    def wait_for_osvos(self, frame: SeenFrame) -> None:
        """Let the objects wait for OSVOS, where it was asked."""
        if frame.osvos is not None:
            self._stream.wait(frame.osvos)

    def warp(self, frame: SeenFrame) -> None:
        """See :meth:`mpn.runtime.host.backend.Stages.warp`."""
        held = self._held
        held.readback.clear("flags", "agreement")
        held.warp(frame.frame, frame.flow_to_prev_px, frame.flow_from_prev_px)

    def propagate(self, frame: SeenFrame) -> None:
        """See ``crop`` and ``propagate`` of :class:`mpn.runtime.host.backend.Stages`."""
        for flag, batch in enumerate(self._batches):
            with self._inner_watch.stage("crop"):
                self._held.crop(frame.frame, batch.packed, batch.rows)
                if batch.mirrored is not None:
                    self._held.mirror(batch.packed, batch.mirrored)
            count = len(batch.members)
            with self._inner_watch.stage("propagation"):
                prob = batch.engine.enqueue(self._stream.address, batch.crops).outputs["prob"]
                answers = array_from_tensor(prob).part(0, batch.crops)
                self._held.flag_not_finite(answers, flag)
                answer = answers.part(0, count)
                if batch.mirrored is not None:
                    self._held.average_mirrored(answer, answers.part(count, 2 * count))
            if self._is_direct:
                self._crops = answer
                continue
            for row, k in enumerate(batch.members):
                self._stream.copy(answer.part(row, row + 1), self._crops.part(k, k + 1))

    def agree(self, frame: SeenFrame) -> None:
        """Count what OSVOS says of the objects where they are expected."""
        assert frame.planes is not None
        self._held.agreement(frame.frame, frame.planes, self._plane_list(frame.plane_of))

    def merge(self, frame: SeenFrame, *, has_crops: bool, is_blended: bool) -> None:
        """Paste, ensemble and merge: see ``Stages.paste``, ``OsvosStage.ensemble``, ``merge``."""
        if frame.flags is not None and any(plane >= 0 for plane in frame.plane_of):
            first = len(self._batches)
            flags = self._held.readback["flags"].part(first, len(self._flag_owners))
            self._stream.copy(frame.flags, flags)
        self._held.merge(
            self._crops if has_crops else None,
            frame.planes if is_blended else None,
            self._plane_list(frame.plane_of) if is_blended else None,
        )

    def refine(self, frame: SeenFrame) -> None:
        """See :func:`mpn.runtime.crf.refine.refine`."""
        held = self._held
        assert self._crf is not None
        self._crf.refine(
            held.merged,
            frame.frame,
            held.merged_supports,
            refined=self._refined,
            refined_boxes=held.readback["refined_supports"],
        )

    def output(self) -> None:
        """Probabilities, labels and tracks at input size, on their way to the host."""
        stream, held = self._stream, self._held
        resize_prob(stream, held.merged, self._input_hw, out=self._soft_wide)
        if self._crf is not None:
            resize_prob(stream, self._refined, self._input_hw, out=self._result_wide)
        if self._labels is not held.labels:
            stream.launch(
                "labels_from_merged",
                merged=self._result_wide,
                object_ids=held.object_ids,
                objects=len(self._object_ids),
                pixels=self._input_hw[0] * self._input_hw[1],
                labels=self._labels,
            )
        held.tracks(self._labels, self._soft_wide)
        stream.download_async(self._labels, self._labels_told)
        stream.download_async(held.readback.buffer, self._figures_told)

    def told(self) -> Told:
        """Wait for the frame: the one time that the host waits.

        Raises:
            EngineError: If a network answered with what is not finite.
        """
        self._stream.record().sync()
        self._frames_told += 1
        figures = self._held.readback.read(self._figures_told.copy())
        for (role, object_id), flag in zip(self._flag_owners, figures["flags"], strict=True):
            if flag:
                raise not_finite_error(role, object_id)
        return Told(self._labels_told.copy(), figures)

    def timings(self, frame: SeenFrame) -> dict[str, float]:
        """Device time by stage, of everything done for a frame that was told."""
        seconds: dict[str, float] = {}
        for watch in (*frame.watches, self._watch, self._inner_watch):
            for stage, taken in watch.taken().items():
                seconds[stage] = seconds.get(stage, 0.0) + taken
        return seconds

    def found(self, branch: TrackBranch = "propagation") -> Candidates:
        """What the warp has found, on the host; the host waits for it."""
        self._stream.record().sync()
        held, download = self._held, self._stream.download
        rois = boxes_from_rows(download(held.rois))
        return Candidates(
            prob=download(held.candidates),
            supports=boxes_from_rows(download(held.reach)),
            rois=rois,
            branches=(branch,) * len(rois),
        )

    def replace_found(self, candidates: Candidates, planes: Sequence[Float32Array | None]) -> None:
        """Go on with what the host has made of the candidates.

        Args:
            candidates: In the place of what the warp has found.
            planes: Of OSVOS, for each object or None; they become those of the ensemble.
        """
        held, upload = self._held, self._stream.upload
        upload(candidates.prob, held.candidates)
        upload(box_rows(candidates.rois), held.rois)
        upload(box_rows(candidates.supports), held.reach)
        distinct: dict[int, Float32Array] = {
            id(plane): plane for plane in planes if plane is not None
        }
        numbers = {key: n for n, key in enumerate(distinct)}
        self._host_plane_of = tuple(-1 if p is None else numbers[id(p)] for p in planes)
        self._host_planes = upload(np.stack(list(distinct.values()))) if distinct else None

    def merge_replaced(self, *, has_crops: bool, is_blended: bool) -> None:
        """:meth:`merge` after :meth:`replace_found`."""
        is_blended = is_blended and self._host_planes is not None
        self._held.merge(
            self._crops if has_crops else None,
            self._host_planes if is_blended else None,
            self._plane_list(self._host_plane_of) if is_blended else None,
        )

    def commit(self, frame: SeenFrame) -> None:
        """Go on from a frame that was told."""
        held = self._held
        if self._options.crf_feedback and self._crf is not None:
            held.commit(self._refined, held.readback["refined_supports"])
        else:
            held.commit()
        self.sight.commit(frame)

    def recover(self) -> None:
        """Wait for everything, after a frame that failed; the state is the one before it."""
        self._stream.record().sync()
        self.sight.wait()
        self.sight.forget_ahead()
        self._watch.taken()
        self._inner_watch.taken()

    def probs_loader(self) -> Callable[[], Float32Array]:
        """Downloads the probabilities of the frame just told, as long as it is the last one."""
        told, source = self._frames_told, self._result_wide

        def load() -> Float32Array:
            if told != self._frames_told or self._frame is None:
                raise InputError(
                    "the probabilities of this frame are gone from the device: read 'probs' of a "
                    "result before the next frame"
                )
            probs: Float32Array = self._stream.download(source)
            return probs

        return load

    def shape_of(self, foreign: Any) -> tuple[int, ...]:
        """Shape of a frame of another library in device memory.

        Raises:
            InputError: If it is not (H, W, 3) uint8, or not C-contiguous.
        """
        view = self._stream.array_from(foreign)
        check_rgb_array(view)
        return view.shape

    def on_host(self, foreign: Any) -> UInt8Array:
        """A frame of another library on the host."""
        view = self._stream.array_from(foreign)
        check_rgb_array(view)
        frame: UInt8Array = self._stream.download(view)
        return frame

    def overwriting(self) -> None:
        """Say that the probabilities of the frame before are about to be overwritten."""
        self._frames_told += 1

    def state_arrays(self) -> tuple[Float32Array, Float32Array, Float32Array]:
        """``prob``, ``soft_prob`` and ``result_prob`` of the last frame, on the host.

        Equal ones are one array.
        """
        held, download = self._held, self._stream.download
        soft = download(self._soft_wide)
        result = soft if self._result_wide is self._soft_wide else download(self._result_wide)
        if self._input_hw != self._working_hw:
            return download(held.prob), soft, result
        is_fed_back = self._options.crf_feedback and self._crf is not None
        return (result if is_fed_back else soft), soft, result

    def close(self) -> None:
        """Wait for the device and forget what is on it; closing twice is allowed."""
        if self._frame is not None:
            self._stream.record().sync()
            self.sight.wait()
        self._frame = self._crf = None
        self._segments.clear()
        self.sight.release()

    @property
    def _held(self) -> CudaFrame:
        assert self._frame is not None
        return self._frame

    def _plane_list(self, plane_of: tuple[int, ...]) -> DeviceArray:
        """(K,) int32 on the device; those met before are kept."""
        if plane_of not in self._plane_lists:
            self._plane_lists[plane_of] = self._stream.upload(np.array(plane_of, np.int32))
        return self._plane_lists[plane_of]

    def _make_batches(self, object_ids: Sequence[int]) -> list[_Batch]:
        """Each object on its own engine, the others together, as many as the common one takes."""
        common: list[int] = []
        runs: list[tuple[DeviceEngine, list[int], int | None]] = []
        for k, object_id in enumerate(object_ids):
            engine = self._objects.get("propagation", object_id)
            if engine is None:
                common.append(k)
            else:
                runs.append((device_engine(engine, object_id=object_id), [k], object_id))
        times = 2 if self._options.mirror else 1
        most = self._engines.manifest.max_objects // times
        if not most:
            raise EngineError(
                "these engines take one crop at a time, and option mirror needs two: export them "
                "with --max-objects 2 or more, or give mirror as False"
            )
        batches = [common[first : first + most] for first in range(0, len(common), most)]
        runs = [(self._propagation, members, None) for members in batches] + runs
        self._is_direct = len(runs) == 1
        made: list[_Batch] = []
        for engine, members, owner in runs:
            count = len(members)
            taken = array_from_tensor(engine.buffers(count * times).inputs["rgb_prob"])
            mirrored = taken.part(count, 2 * count) if self._options.mirror else None
            rows = None if self._is_direct else self._stream.upload(np.array(members, np.int32))
            made.append(_Batch(engine, tuple(members), rows, taken.part(0, count), mirrored, owner))
        return made

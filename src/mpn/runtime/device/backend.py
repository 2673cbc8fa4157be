"""Implement the frame backend in CUDA.

A stage enqueues its work on the stream of the objects and returns. The host waits once per frame,
in :meth:`DeviceBackend.readback`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn.cuda.api import Stream, is_on_device
from mpn.cuda.array import DeviceArray
from mpn.engines.base import DeviceEngine
from mpn.engines.open import EngineSet
from mpn.errors import EngineError, InputError
from mpn.runtime.backend import FrameMemory, OsvosMaps, Readback
from mpn.runtime.candidates import Candidates
from mpn.runtime.device.crf import CudaCrf
from mpn.runtime.device.graphs import GraphCache, StreamTimer, array_from_tensor, device_engine
from mpn.runtime.device.images import box_rows, boxes_from_rows, check_rgb_array, resize_prob
from mpn.runtime.device.ingest import DeviceFrame, FrameIngest
from mpn.runtime.device.readback import agreement_from_fields, measured_from_fields
from mpn.runtime.device.state import DeviceState
from mpn.runtime.device.target import TargetScores, crop_without_scores
from mpn.runtime.host.flow import FlowEstimator, PreparedFrame
from mpn.runtime.host.merge import not_finite_error
from mpn.runtime.host.osvos import OsvosRunner
from mpn.runtime.host.preprocess import resize_rgb
from mpn.runtime.host.target import TargetStage
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.one_shot import OneShotModels, takes_score
from mpn.runtime.options import DeviceOptions, ResolvedOptions, check_options
from mpn.runtime.state import VideoState
from mpn.runtime.timing import StageTimer
from mpn.types import Float32Array, TrackBranch, UInt8Array, check_rgb


@dataclass(frozen=True)
class _Batch:
    """Objects whose crops one engine takes in one run.

    Attributes:
        engine: Common, or an object's own.
        members: Their indices.
        rows: The same on the device; None: all objects in their order.
        packed: (N, 4 or 5, S, S): the engine's input.
        flipped: Of the same shape, after it: the same crops, flipped; None without flip TTA.
        object_id: Object of the engine; None for the common one.
    """

    engine: DeviceEngine
    members: tuple[int, ...]
    rows: DeviceArray | None
    packed: DeviceArray
    flipped: DeviceArray | None
    object_id: int | None

    @property
    def crops(self) -> int:
        """Number of crops that the engine takes in one frame."""
        return len(self.members) * (1 if self.flipped is None else 2)


class DeviceBackend(Closeable):
    """Implement :class:`mpn.runtime.backend.QueuedBackend` on one CUDA device.

    ``prob`` and ``merged`` are separate arrays, and so are the scores of two frames, and the OSVOS
    planes, features, flows and images of three: a frame that fails has overwritten nothing that the
    frame before needs.

    Args:
        stream: Of the objects; the backend creates others.
        engines: Open engines that take device memory.
        options: The pipeline's, in force.
        objects: The objects' own engines.
        timer: Takes the times of the stages.
        models: OSVOS, the target model, or both.
        target: Solves the target model on the host; None if it is not in use.
        device_options: How the device is used.
        host_flow: Estimates the flow on the host; None: the flow engine does.

    Raises:
        EngineError: If an engine takes host memory only.
        InputError: If an option has no kernels.
    """

    supports_prefetch = True

    def __init__(
        self,
        stream: Stream,
        engines: EngineSet,
        options: ResolvedOptions,
        objects: ObjectEngines,
        timer: StageTimer,
        models: OneShotModels,
        target: TargetStage | None = None,
        *,
        device_options: DeviceOptions | None = None,
        host_flow: FlowEstimator | None = None,
    ) -> None:
        check_options(options)
        device_options = device_options or DeviceOptions()
        self._stream, self._engines = stream, engines
        self._options, self._objects = options, objects
        self._timer = timer
        self._models, self._target = models, target
        self._takes_score = takes_score(engines.propagation.spec)
        self._use_graphs = device_options.use_graphs
        self._propagation = device_engine(engines.propagation)
        self._osvos = OsvosRunner(engines, options, objects)
        self._ingest = FrameIngest(
            stream,
            engines,
            objects,
            options,
            device_options,
            host_flow=host_flow,
            has_target=target is not None,
        )
        self._graphs = GraphCache(stream, is_capturing=False)
        self._is_capturing = self._is_in_graph = False
        self._watch = StreamTimer(stream)
        self._planes: DeviceState | None = None
        self._scores: TargetScores | None = None
        self._crf: CudaCrf | None = None
        self._plane_lists: dict[tuple[int, ...], DeviceArray] = {}
        self._memory: FrameMemory | None = None
        self._host_maps: tuple[DeviceArray | None, tuple[int, ...]] | None = None
        self._generation = 0

    @property
    def queue(self) -> DeviceBackend:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        return self

    def frame_shape(self, rgb: Any) -> tuple[int, ...]:
        """See :class:`mpn.runtime.backend.FrameBackend`.

        Raises:
            InputError: If it is not (H, W, 3) uint8, or in device memory and not C-contiguous.
        """
        if not is_on_device(rgb):
            check_rgb(rgb)
            return tuple(rgb.shape)
        view = self._stream.array_from(rgb)
        check_rgb_array(view)
        return view.shape

    def to_host(self, rgb: Any) -> UInt8Array:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        frame: UInt8Array = rgb
        if is_on_device(rgb):
            view = self._stream.array_from(rgb)
            check_rgb_array(view)
            frame = self._stream.download(view)
        return frame

    def load(self, state: VideoState, memory: FrameMemory) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`.

        All graphs are dropped: objects, engines and sizes may have changed.
        """
        stream, manifest = self._stream, self._engines.manifest
        stream.record().sync()
        self._generation += 1
        objects, self._object_ids = len(state.object_ids), state.object_ids
        self._input_hw, self._working_hw = state.input_hw, state.working_hw
        preprocessing = manifest.preprocessing.propagation
        self._batches = self._make_batches(state.object_ids)
        self._flag_owners: list[tuple[str, int | None]] = [
            *(("propagation", batch.object_id) for batch in self._batches),
            ("features", None),
            ("OSVOS", None),
            *(("OSVOS", k) for k in state.object_ids if self._objects.get("osvos", k) is not None),
        ]
        planes = DeviceState(
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
        planes.start(memory.prob, box_rows(state.bounds), state.first_areas_px, tables)
        self._scores = self._make_scores(state, memory)
        size = manifest.roi_size
        self._crops = stream.empty((objects, 1, size, size), np.float32)
        self._crf = None
        if self._options.crf:
            self._refined = stream.empty((objects, *state.working_hw), np.float32)
            self._kept = stream.empty((objects, *state.working_hw), np.float32)
            self._crf = CudaCrf(
                stream,
                objects=objects,
                size_hw=state.working_hw,
                options=self._options.crf,
            )
        is_resized = state.input_hw != state.working_hw
        wide = (objects, *state.input_hw)
        self._soft_wide = stream.empty(wide, np.float32) if is_resized else planes.merged
        self._result_wide = self._soft_wide
        if self._options.crf:
            self._result_wide = stream.empty(wide, np.float32) if is_resized else self._refined
        self._labels = planes.labels
        if is_resized or self._options.crf:
            self._labels = stream.empty(state.input_hw, np.uint8)
        self._labels_host = stream.pinned(state.input_hw, np.uint8)
        self._block_host = stream.pinned(planes.readback.buffer.shape, np.uint8)
        self._scores_host: Float32Array | None = None
        if self._scores is not None:
            self._scores_host = stream.pinned(self._scores.current.shape, np.float32)
        self._plane_lists.clear()
        self._plane_list(tuple(range(objects)))  # the usual one: not in the middle of the video
        self._planes = planes
        for batch in self._batches:
            batch.engine.prepare(stream.address, batch.crops)
        self._is_capturing = self._use_graphs and all(
            batch.engine.supports_graph_capture for batch in self._batches
        )
        self._graphs = GraphCache(stream, is_capturing=self._is_capturing)
        host_flow = memory.flow_frame if self._ingest.is_flow_of_host else None
        self._ingest.begin(memory.frame, host_flow, state.input_hw, state.object_ids)
        self._memory = memory

    def wait(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._stream.record().sync()
        self._ingest.wait()

    def snapshot(self) -> FrameMemory:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self.wait()
        if self._memory is None:
            state, download = self._state, self._stream.download
            soft = download(self._soft_wide)
            result = soft if self._result_wide is self._soft_wide else download(self._result_wide)
            prob = result if self._feeds_back else soft
            if self._input_hw != self._working_hw:
                prob = download(state.prob)
            current = self._ingest.current
            frame = resize_rgb(self.to_host(current.given), self._working_hw)
            flow_frame = current.flow_frame or PreparedFrame(frame, self._working_hw)
            self._memory = FrameMemory(frame, flow_frame, prob, result, soft)
            if self._scores is not None:
                features = self._current_features
                self._memory = replace(
                    self._memory,
                    targets=self._scores.targets,
                    scores=download(self._scores.committed),
                    features=None if features is None else download(features).astype(np.float32),
                )
        return self._memory

    def ingest(
        self, rgb: Any, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> DeviceFrame:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._generation += 1  # the probabilities of the frame before will be overwritten
        self._host_maps = None
        frame = self._ingest.take(rgb, osvos_for=osvos_for, runs_features=runs_features)
        self.wait_for_flow(frame)
        return frame

    def prefetch(
        self, rgb: Any, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._ingest.prefetch(rgb, osvos_for=osvos_for, runs_features=runs_features)

    def run_features(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.QueuedBackend`."""
        if frame.features_done is None:
            self._ingest.enqueue_features(frame)
        self.wait_for_features(frame)

    def wait_for_features(self, frame: DeviceFrame) -> None:
        """Make the stream of the objects wait for the features, not the host."""
        assert frame.features_done is not None
        self._stream.wait(frame.features_done)

    def run_osvos(self, frame: DeviceFrame, osvos_for: Sequence[bool]) -> None:
        """See :class:`mpn.runtime.backend.QueuedBackend`."""
        if not self._models.osvos:  # the maps are the scores of the target model
            frame.plane_of = tuple(k if is_due else -1 for k, is_due in enumerate(osvos_for))
        elif not frame.has_osvos_for(osvos_for):
            self._ingest.enqueue_osvos(frame, osvos_for)

    def wait_for_flow(self, frame: DeviceFrame) -> None:
        """Make the stream of the objects wait for the frame and its flow, not the host."""
        assert frame.flow is not None
        self._stream.wait(frame.flow)

    def wait_for_osvos(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.QueuedBackend`."""
        if frame.osvos is not None:
            self._stream.wait(frame.osvos)

    def segment(
        self, name: str, frame: DeviceFrame, key: Hashable, work: Callable[[], None]
    ) -> None:
        """See :class:`mpn.runtime.backend.QueuedBackend`.

        A graph is timed as a whole; otherwise each stage is.
        """
        if not self._is_capturing:
            work()
            return
        with self._watch.stage(name):
            self._is_in_graph = True
            try:
                self._graphs.run((name, frame.slot, key), work)
            finally:
                self._is_in_graph = False

    def warp(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state = self._state
        with self._timed("warp"):
            state.readback.clear("flags", "agreement")
            state.warp(frame.frame, frame.flow_to_prev_px, frame.flow_from_prev_px)

    def candidates(self) -> Candidates:
        """See :class:`mpn.runtime.backend.FrameBackend`; waits for all streams."""
        self._stream.record().sync()
        state, download = self._state, self._stream.download
        rois = boxes_from_rows(download(state.rois))
        branch: TrackBranch = "propagation"
        found = Candidates(
            prob=download(state.candidates),
            bounds=boxes_from_rows(download(state.warp_bounds)),
            rois=rois,
            branches=(branch,) * len(rois),
        )
        self._ingest.wait()  # engines may run on host arrays now, outside of any stream
        return found

    def score(self, frame: DeviceFrame, *, runs_features: bool) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`; after :meth:`run_features`."""
        scores, state = self._scores, self._state
        if scores is None:
            return
        with self._timed("target"):
            if runs_features:
                assert frame.features is not None
                state.flag_not_finite(frame.features, len(self._batches))
                scores.compute(frame.features)
            else:
                scores.warp(frame.flow_to_prev_px)

    def osvos_maps(self, frame: DeviceFrame, osvos_for: Sequence[bool]) -> OsvosMaps:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        small = resize_rgb(self.to_host(frame.given), self._working_hw)
        if not self._models.osvos and self._scores is not None and self._target is not None:
            scores = self._stream.download(self._scores.current)
            return self._target.maps(small, scores, osvos_for)
        return self._osvos.maps(small, self._object_ids, osvos_for)

    def set_candidates(self, candidates: Candidates, maps: OsvosMaps | None) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state, upload = self._state, self._stream.upload
        upload(candidates.prob, state.candidates)
        upload(box_rows(candidates.rois), state.rois)
        upload(box_rows(candidates.bounds), state.warp_bounds)
        planes: Sequence[Float32Array | None] = () if maps is None else maps.planes
        distinct = {id(plane): plane for plane in planes if plane is not None}
        numbers = {key: n for n, key in enumerate(distinct)}
        plane_of = tuple(-1 if plane is None else numbers[id(plane)] for plane in planes)
        stacked = upload(np.stack(list(distinct.values()))) if distinct else None
        self._host_maps = (stacked, plane_of)

    def grow_rois(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        growth = self._options.target.roi_growth
        if self._scores is not None:
            with self._timed("target"):
                self._scores.exclude_others(self._state.candidates)
                if growth:
                    self._scores.grow(self._state.rois, growth)

    def propagate(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state = self._state
        for flag, batch in enumerate(self._batches):
            with self._timed("crop"):
                state.crop(frame.frame, batch.packed, batch.rows)
                if self._takes_score and self._scores is not None:
                    self._scores.crop(state.rois, batch.packed, batch.rows)
                elif self._takes_score:
                    crop_without_scores(self._stream, state.rois, batch.packed, batch.rows)
                if batch.flipped is not None:
                    state.flip(batch.packed, batch.flipped)
            count = len(batch.members)
            with self._timed("propagation"):
                prob = batch.engine.enqueue(self._stream.address, batch.crops).outputs["prob"]
                outputs = array_from_tensor(prob).part(0, batch.crops)
                state.flag_not_finite(outputs, flag)
                output = outputs.part(0, count)
                if batch.flipped is not None:
                    state.average_flipped(output, outputs.part(count, 2 * count))
            if self._is_direct:
                self._crops = output
                continue
            for row, k in enumerate(batch.members):
                self._stream.copy(output.part(row, row + 1), self._crops.part(k, k + 1))

    def score_agreement(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.QueuedBackend`."""
        with self._timed("osvos" if self._models.osvos else "target"):
            planes = frame.planes
            if not self._models.osvos and self._scores is not None:
                planes = self._scores.planes()
            assert planes is not None
            self._state.agreement(frame.frame, planes, self._plane_list(frame.plane_of))

    def merge(self, frame: DeviceFrame, *, use_crops: bool, blends: bool) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state = self._state
        with self._timed("merge"):
            planes, plane_of = frame.planes, frame.plane_of
            if self._host_maps is not None:
                planes, plane_of = self._host_maps
            elif blends and not self._models.osvos and self._scores is not None:
                planes = self._scores.planes()
            elif frame.flags is not None and any(plane >= 0 for plane in plane_of):
                flags = state.readback["flags"]
                self._stream.copy(
                    frame.flags, flags.part(len(self._batches) + 1, len(self._flag_owners))
                )
            is_blended = blends and planes is not None
            state.merge(
                self._crops if use_crops else None,
                planes if is_blended else None,
                self._plane_list(plane_of) if is_blended else None,
                foreground_weight=self._models.blend_weight(self._options),
            )

    def refine(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state = self._state
        assert self._crf is not None
        with self._timed("crf"):
            self._crf.refine(
                state.merged,
                frame.frame,
                state.merged_bounds,
                refined=self._refined,
                refined_boxes=state.readback["refined_bounds"],
            )

    def emit(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        stream, state = self._stream, self._state
        with self._timed("output"):
            self._resize_results()
            if self._labels is not state.labels:
                stream.launch(
                    "labels_from_merged",
                    merged=self._result_wide,
                    object_ids=state.object_ids,
                    objects=len(self._object_ids),
                    pixels=self._input_hw[0] * self._input_hw[1],
                    labels=self._labels,
                )
            state.tracks(self._labels, self._soft_wide)
            stream.download_async(self._labels, self._labels_host)
            stream.download_async(state.readback.buffer, self._block_host)
            if self._scores is not None and self._scores_host is not None:
                stream.download_async(self._scores.current, self._scores_host)

    def readback(self) -> Readback:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._stream.record().sync()
        self._generation += 1
        fields = self._state.readback.read(self._block_host.copy())
        for (role, object_id), flag in zip(self._flag_owners, fields["flags"], strict=True):
            if flag:
                raise not_finite_error(role, object_id)
        return Readback(
            labels=self._labels_host.copy(),
            measured=measured_from_fields(fields),
            bounds=boxes_from_rows(fields["merged_bounds"]),
            rois=boxes_from_rows(fields["rois"]),
            agreement=agreement_from_fields(fields),
            probs=self._probs_loader(),
            scores=None if self._scores_host is None else self._scores_host.copy(),
        )

    def commit(self, frame: DeviceFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state = self._state
        if self._scores is not None:
            self._scores.commit()
        if self._feeds_back:
            self._stream.copy(state.merged, self._kept)
            state.commit(self._refined, state.readback["refined_bounds"])
        else:
            if self._crf is not None:
                self._stream.copy(self._refined, self._kept)
            state.commit()
        self._ingest.commit(frame)
        self._memory = None
        for watch in (*frame.watches, self._watch):
            for stage, seconds in watch.taken().items():
                self._timer.add(stage, seconds)

    def learn(self, weights: Mapping[int, float]) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`.

        The host waits for a copy of the features and the probabilities, and solves. Work of
        prefetched frames continues on the device.
        """
        scores, memory = self._scores, self._memory
        if self._target is None or scores is None or not weights:
            return
        with self._timer.stage("target"):
            if memory is not None:  # of a frame that was loaded
                features, prob = memory.features, memory.prob
                if features is None:
                    return
            elif (on_device := self._current_features) is not None:
                features, prob = scores.read(on_device, self._state.prob)
            else:
                return
            targets = self._target.learned(
                scores.targets, features, prob, self._object_ids, weights
            )
            scores.learn(targets)
            if memory is not None:
                self._memory = replace(memory, targets=targets)

    def rollback(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`; waits for all streams."""
        self.wait()
        self._ingest.drop_prefetched()
        self._watch.taken()
        self._host_maps = None
        if self._memory is None:
            self._restore_results()

    def close(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        if self._planes is not None:
            self.wait()
        self._planes = self._scores = self._crf = self._memory = None
        self._graphs.clear()
        self._ingest.release()

    def _make_scores(self, state: VideoState, memory: FrameMemory) -> TargetScores | None:
        """Upload the target model of a frame, if it is in use."""
        if self._target is None or memory.targets is None or memory.scores is None:
            return None
        return TargetScores(
            self._stream,
            memory.targets,
            memory.scores,
            state.object_ids,
            frame_hw=state.working_hw,
            size_hw=self._target.size_hw,
            has_planes=not self._models.osvos,
        )

    @property
    def _current_features(self) -> DeviceArray | None:
        """Features of the last committed frame; None if they were not computed."""
        current = self._ingest.current
        return None if current.features_done is None else current.features

    def _resize_results(self) -> None:
        resize_prob(self._stream, self._state.merged, self._input_hw, out=self._soft_wide)
        if self._crf is not None:
            resize_prob(self._stream, self._refined, self._input_hw, out=self._result_wide)

    def _restore_results(self) -> None:
        """Compute the results of the last committed frame again, for :meth:`snapshot`."""
        state, copy = self._state, self._stream.copy
        if self._feeds_back:
            copy(self._kept, state.merged)
            copy(state.prob, self._refined)
        else:
            copy(state.prob, state.merged)
            if self._crf is not None:
                copy(self._kept, self._refined)
        self._resize_results()

    def _probs_loader(self) -> Callable[[], Float32Array]:
        """Return a function that downloads the probabilities of the last frame."""
        generation, source = self._generation, self._result_wide

        def load() -> Float32Array:
            if generation != self._generation or self._planes is None:
                raise InputError(
                    "the probabilities of this frame are gone from the device: read 'probs' of a "
                    "result before the next frame"
                )
            probs: Float32Array = self._stream.download(source)
            return probs

        return load

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Time what the body enqueues, unless it is part of a graph."""
        if self._is_in_graph:
            yield
            return
        with self._watch.stage(stage):
            yield

    @property
    def _feeds_back(self) -> bool:
        """Whether the next frame starts from the output of CRF."""
        return (
            self._options.crf is not None and self._options.crf.feedback
        ) and self._crf is not None

    @property
    def _state(self) -> DeviceState:
        assert self._planes is not None
        return self._planes

    def _plane_list(self, plane_of: tuple[int, ...]) -> DeviceArray:
        """Upload the plane of each object, (K,) int32, once per distinct list."""
        if plane_of not in self._plane_lists:
            self._plane_lists[plane_of] = self._stream.upload(np.array(plane_of, np.int32))
        return self._plane_lists[plane_of]

    def _make_batches(self, object_ids: Sequence[int]) -> list[_Batch]:
        """Put objects without a fine-tuned engine in batches of the common one."""
        common: list[int] = []
        runs: list[tuple[DeviceEngine, list[int], int | None]] = []
        (input_name,) = self._propagation.spec.input_names
        for k, object_id in enumerate(object_ids):
            engine = self._objects.get("propagation", object_id)
            if engine is None:
                common.append(k)
            else:
                runs.append((device_engine(engine, object_id=object_id), [k], object_id))
        times = 2 if self._options.flip_tta else 1
        most = self._engines.manifest.max_objects // times
        if not most:
            raise EngineError(
                "these engines take one crop at a time, and option flip_tta needs two: export them "
                "with --max-objects 2 or more, or set flip_tta to False"
            )
        batches = [common[first : first + most] for first in range(0, len(common), most)]
        runs = [(self._propagation, members, None) for members in batches] + runs
        self._is_direct = len(runs) == 1
        made: list[_Batch] = []
        for engine, members, owner in runs:
            count = len(members)
            taken = array_from_tensor(engine.buffers(count * times).inputs[input_name])
            flipped = taken.part(count, 2 * count) if self._options.flip_tta else None
            rows = None if self._is_direct else self._stream.upload(np.array(members, np.int32))
            made.append(_Batch(engine, tuple(members), rows, taken.part(0, count), flipped, owner))
        return made

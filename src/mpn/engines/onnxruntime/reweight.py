"""Inference engines with other weights, from a copy of the graph's external data.

Never ``add_initializer``: on onnxruntime's CPU provider it gives wrong results without an error
at the default optimisation level. A session built from changed data runs as fast as the original.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mpn._common.files import output_errors
from mpn._common.locks import TemporaryFolder
from mpn.cuda.array import DeviceArray
from mpn.cuda.device import CudaDevice
from mpn.engines.base import DeviceEngine, Engine, EngineBuffers
from mpn.engines.directory.entries import FinetuneEntry
from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.manifest import Manifest
from mpn.engines.onnxruntime.cuda_engine import OrtCudaEngine
from mpn.engines.onnxruntime.engine import OrtBackend, OrtEngine
from mpn.engines.onnxruntime.finetune import finetune_entry
from mpn.engines.spec import EngineSpec, Role
from mpn.engines.weights import check_weights, read_weights, write_weights
from mpn.engines.wrapper import EngineWrapper
from mpn.errors import EngineError, OutputError
from mpn.types import Float32Array

_PROBE_SEED = 0


class FinetunedEngine(EngineWrapper):
    """Engine with other weights in a temporary folder, which :meth:`close` removes.

    Args:
        engine: The engine.
        folder: Folder of its graph and data.
        changed: Names of the weights that differ from the directory's.
    """

    def __init__(self, engine: Engine, folder: TemporaryFolder, changed: tuple[str, ...]) -> None:
        super().__init__(engine)
        self._folder = folder
        self.changed = changed

    def __repr__(self) -> str:
        return f"FinetunedEngine({self._engine!r}, {len(self.changed)} weights changed)"

    def close(self) -> None:
        """Release the session, then remove its files; closing twice is allowed."""
        super().close()
        self._folder.close()


class FinetunedDeviceEngine(FinetunedEngine):
    """Wrap a :class:`mpn.engines.base.DeviceEngine` in the same way."""

    def __init__(
        self, engine: DeviceEngine, folder: TemporaryFolder, changed: tuple[str, ...]
    ) -> None:
        super().__init__(engine, folder, changed)
        self._device_engine = engine

    @property
    def supports_graph_capture(self) -> bool:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        return self._device_engine.supports_graph_capture

    def buffers(self, objects: int = 1) -> EngineBuffers:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        return self._device_engine.buffers(objects)

    def prepare(self, stream: int, objects: int = 1) -> None:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        self._device_engine.prepare(stream, objects)

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        return self._device_engine.enqueue(stream, objects)

    def infer_on_device(
        self, inputs: Mapping[str, DeviceArray], stream: int
    ) -> Mapping[str, DeviceArray]:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        return self._device_engine.infer_on_device(inputs, stream)


def open_finetuned_engine(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    role: Role,
    weights: Mapping[str, Float32Array],
    *,
    backend: OrtBackend = "cpu",
    threads: int | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    base: Engine | None = None,
    device: CudaDevice | None = None,
) -> FinetunedEngine:
    """Open an inference engine with other weights.

    The graph and its data are copied into a new folder, and ``weights`` are written into the data
    (converted to half and scaled if the directory's weights are). A session opens the copy and
    runs one input as a check. If no weight changed, the output must equal that of the directory's
    engine bit for bit. If weights changed and the output did not, a second session with the sign
    of each weight negated must give another output.

    Args:
        directory: Engine directory.
        manifest: Its manifest.
        role: ``"propagation"`` or ``"osvos"``.
        weights: New weights by name; the others stay.
        backend: ``"cpu"`` or ``"cuda"``.
        threads: Threads per operator; None for onnxruntime's default.
        work_dir: An existing folder for the copies; None for the system's temporary folder.
        base: The directory's engine on the same backend, if it is already open.
        device: The GPU, for ``"cuda"``; None for the first one.

    Returns:
        The engine, for ``"cuda"`` a :class:`FinetunedDeviceEngine`. Its close removes its files.

    Raises:
        EngineError: If a weight does not fit, or the check fails.
        OutputError: If the copies cannot be written.
    """
    entry = finetune_entry(manifest, role)
    check_weights(entry.tensors, weights, complete=False)
    path = Path(directory)
    if backend == "cuda" and device is None:
        device = CudaDevice()
    opener = _Opener(path, manifest, role, entry, backend, threads, work_dir, device)
    finetuned = opener.open(weights)
    try:
        _check_reweighted(opener, finetuned, base)
    except BaseException:
        finetuned.close()
        raise
    return finetuned


@contextmanager
def graph_with_weights(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    role: Role,
    weights: Mapping[str, Float32Array],
) -> Iterator[Path]:
    """Yield a temporary copy of a role's graph with other weights.

    Args:
        directory: Engine directory.
        manifest: Its manifest.
        role: ``"propagation"`` or ``"osvos"``.
        weights: New weights by name; the others stay.

    Yields:
        The ``.onnx`` file.

    Raises:
        EngineError: If a weight does not fit.
        OutputError: If the copy cannot be written.
    """
    entry = finetune_entry(manifest, role)
    check_weights(entry.tensors, weights, complete=False)
    opener = _Opener(Path(directory), manifest, role, entry, "cpu", None, None)
    folder, _ = opener.write_copy(weights)
    try:
        yield folder.path / manifest.roles[role].onnx
    finally:
        folder.close()


class _Opener:
    """Opener of engines of one role with different weights."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        role: Role,
        entry: FinetuneEntry,
        backend: OrtBackend,
        threads: int | None,
        work_dir: str | os.PathLike[str] | None,
        device: CudaDevice | None = None,
    ) -> None:
        self.directory = directory
        self.role = role
        self.entry = entry
        self.spec = manifest.spec(role)
        self._onnx = manifest.roles[role].onnx
        self._files = manifest.roles[role].files
        self._backend: OrtBackend = backend
        self._threads = threads
        self._work_dir = work_dir
        self._device = device

    def open(self, weights: Mapping[str, Float32Array]) -> FinetunedEngine:
        """Open a copy of the files that has ``weights``."""
        folder, changed = self.write_copy(weights)
        try:
            engine = self._engine(folder.path / self._onnx)
        except BaseException:
            folder.close()
            raise
        if isinstance(engine, OrtCudaEngine):
            return FinetunedDeviceEngine(engine, folder, changed)
        return FinetunedEngine(engine, folder, changed)

    def open_base(self) -> OrtEngine | OrtCudaEngine:
        """Open the directory's engine."""
        return self._engine(resolve_inside(self.directory, self._onnx))

    def write_copy(
        self, weights: Mapping[str, Float32Array]
    ) -> tuple[TemporaryFolder, tuple[str, ...]]:
        """Copy the files with new weights; return the folder and the changed names."""
        try:
            folder = TemporaryFolder(self._work_dir)
        except OSError as error:
            raise OutputError(
                f"a folder for the {self.role} engine cannot be made: {error.strerror or error}"
            ) from error
        try:
            return folder, tuple(self._write(folder.path, weights))
        except BaseException:
            folder.close()
            raise

    def _engine(self, path: Path) -> OrtEngine | OrtCudaEngine:
        if self._device is not None:
            return OrtCudaEngine(path, self.spec, self._device, threads=self._threads)
        return OrtEngine(path, self.spec, backend=self._backend, threads=self._threads)

    def _write(self, folder: Path, weights: Mapping[str, Float32Array]) -> list[str]:
        changed: list[str] = []
        for file in self._files:
            source, target = resolve_inside(self.directory, file.path), folder / file.path
            tensors = [tensor for tensor in self.entry.tensors if tensor.file == file.path]
            with output_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                changed += write_weights(source, target, tensors, weights)
        return changed


def _check_reweighted(opener: _Opener, finetuned: FinetunedEngine, base: Engine | None) -> None:
    probe = _probe(opener.spec)
    if base is None:
        with opener.open_base() as own:
            expected = own.run(probe)
    else:
        expected = base.run(probe)
    same = _same(expected, finetuned.run(probe))
    if not finetuned.changed:
        if not same:
            raise EngineError(
                f"the {opener.role} engine with unchanged weights has other outputs than the "
                "directory's engine: replacing weights does not work with this onnxruntime"
            )
        return
    if same:
        # Either the change is too small, or the session does not read the new weights.
        with opener.open(_negated(opener)) as control:
            if _same(expected, control.run(probe)):
                raise EngineError(
                    f"the {opener.role} engine has the same outputs although its weights were "
                    f"replaced: its graph does not read {opener.entry.tensors[0].file}; "
                    "export it again"
                )


def _negated(opener: _Opener) -> dict[str, Float32Array]:
    """Return the weights with negated signs, which always changes the output."""
    own = read_weights(opener.directory, opener.entry.tensors)
    return {name: -values for name, values in own.items()}


def _probe(spec: EngineSpec) -> dict[str, Float32Array]:
    """Return reproducible random inputs between 0 and 1."""
    rng = np.random.default_rng(_PROBE_SEED)
    return {
        tensor.name: rng.random(
            tuple(1 if isinstance(size, str) else size for size in tensor.shape), np.float32
        )
        for tensor in spec.inputs
    }


def _same(left: Mapping[str, Float32Array], right: Mapping[str, Float32Array]) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)

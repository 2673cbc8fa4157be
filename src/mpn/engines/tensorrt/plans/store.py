"""Find the plan of a role in a directory or the user's cache, or build it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mpn._common.cache_dirs import distrust_reason, make_private_folder, user_cache_dir
from mpn._common.files import (
    check_plain_file,
    visible_files,
    write_bytes_atomically,
    write_text_atomically,
)
from mpn.cuda.device import CudaDevice
from mpn.engines.directory.entries import utc_now_iso
from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.locate import is_installed_weights
from mpn.engines.directory.manifest import Manifest
from mpn.engines.spec import Role
from mpn.engines.tensorrt.api import TrtApi
from mpn.engines.tensorrt.plans.builder import BuiltPlan, build_plan
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.engines.tensorrt.plans.progress import OnPlanProgress
from mpn.engines.tensorrt.plans.record import (
    PLANS_DIR,
    PlanKey,
    PlanRecord,
    load_record,
    plan_key,
    record_path,
)
from mpn.errors import BackendError, EngineError, OutputError


@dataclass(frozen=True)
class Plan:
    """A plan that fits this machine.

    Attributes:
        path: The plan file.
        data: The serialised engine.
        record: Its record.
        note: One sentence: loaded from the cache, or built and the reason.
        was_built: Whether this call built it.
    """

    path: Path
    data: bytes
    record: PlanRecord
    note: str
    was_built: bool


class PlanStore:
    """Plans of an engine directory for one library and GPU.

    They are in ``plans/`` of the directory. If that folder cannot be written, or belongs to the
    installed weights, they are in the user's cache.

    Args:
        directory: Engine directory.
        manifest: Its manifest.
        api: The library.
        device: The GPU; None if there is none.

    Raises:
        BackendError: If an engine is quantised.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, api: TrtApi, device: CudaDevice | None
    ) -> None:
        manifest.check_is_float(api.backend)
        self.directory, self.manifest = directory, manifest
        self.api, self.device = api, device

    def key(self, role: Role, options: BuildOptions) -> PlanKey:
        """Return the key that the plan of a role must have."""
        entry = self.manifest.roles[role]
        return plan_key(self.api, entry, self.manifest.spec(role), options, self.device)

    def plan(
        self,
        role: Role,
        options: BuildOptions,
        *,
        build: bool = True,
        rejected: str | None = None,
        on_progress: OnPlanProgress | None = None,
    ) -> Plan:
        """Load the plan of a role, or build it.

        Args:
            role: The network.
            options: Build options.
            build: Build a plan if none fits; if False, raise.
            rejected: Reason why the plan in the cache does not load although its key fits.
            on_progress: Called with the progress of a build.

        Raises:
            BackendError: If none fits and ``build`` is False, or building needs a GPU.
            EngineError: If it cannot be built.
            OutputError: If it cannot be written anywhere.
        """
        key = self.key(role, options)
        reason = rejected
        if reason is None:
            found = self._find(key)
            if isinstance(found, Plan):
                return found
            reason = found
        if not build:
            raise BackendError(
                f"there is no plan of {role} for {self.api.title} that fits this machine "
                f"({reason}), and building was ruled out: leave --no-build away, or build it "
                f"with mpn-export {self.directory} --build"
            )
        return self._build(key, reason, on_progress)

    def _find(self, key: PlanKey) -> Plan | str:
        """Return the plan of a key, or the reason why there is none."""
        for wanted in (key, *self._wider_keys(key)):
            for folder in self._folders():
                path = folder / wanted.file_name
                if not path.is_file():
                    continue
                try:
                    return self._load(path, wanted)
                except EngineError as error:
                    return f"{path.name} does not fit: {error}"
        others = [
            (path, record.key)
            for folder in self._folders()
            for path, record in _records(folder)
            if (record.key.role, record.key.backend) == (key.role, key.backend)
        ]
        if not others:
            return "none was built yet"
        path, other = max(others, key=lambda found: found[0].stat().st_mtime)
        return f"{path.name} does not fit: {key.why_not(other)}"

    def _wider_keys(self, key: PlanKey) -> Iterator[PlanKey]:
        """Yield keys of plans that run on this machine and, in addition, on others."""
        for any_gpu, any_version in ((True, False), (False, True), (True, True)):
            options = replace(
                key.options,
                hardware_compatible=key.options.hardware_compatible or any_gpu,
                version_compatible=key.options.version_compatible or any_version,
            )
            wider = self.key(key.role, options)
            if wider != key:
                yield wider

    def _load(self, path: Path, key: PlanKey) -> Plan:
        record = load_record(path)
        if record.key != key:
            raise EngineError(key.why_not(record.key))
        if self._is_of_another_gpu(record):
            raise EngineError(f"it was built on {record.device} and this is {self._device_name}")
        # A plan is code. In an engine directory it is trusted as far as the directory is.
        if path.parent == user_plans_dir() and (reason := distrust_reason(path)) is not None:
            raise EngineError(reason)
        try:
            check_plain_file(path)
            data = path.read_bytes()
        except OSError as error:
            raise EngineError(f"it cannot be read ({error.strerror or error})") from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise EngineError("it has changed since it was built")
        note = f"{key.role} from {path.name}"
        return Plan(path, data, record, note, was_built=False)

    def _is_of_another_gpu(self, record: PlanRecord) -> bool:
        # The builder times kernels on its GPU; NVIDIA advises against plans of another GPU model.
        portable = self.api.is_rtx or record.key.options.hardware_compatible
        return not portable and record.device != self._device_name

    @property
    def _device_name(self) -> str:
        return "" if self.device is None else self.device.name

    def _build(self, key: PlanKey, reason: str, on_progress: OnPlanProgress | None) -> Plan:
        entry = self.manifest.roles[key.role]
        onnx_path = resolve_inside(self.directory, entry.onnx)
        built = self._built(key.role, key.options, onnx_path, on_progress)
        record = PlanRecord(
            key=key,
            built_by=self.api.version,
            device=self._device_name,
            sha256=hashlib.sha256(built.data).hexdigest(),
            nbytes=len(built.data),
            build_s=round(built.build_s, 2),
            built=utc_now_iso(),
            graph_precision=entry.precision,
            precision=built.precision,
            half_inputs=built.half_inputs,
        )
        path = self._save(built, record)
        note = f"{key.role} built from {entry.onnx} in {built.build_s:.0f} s, because {reason}"
        return Plan(path, built.data, record, note, was_built=True)

    def _built(
        self,
        role: Role,
        options: BuildOptions,
        onnx_path: Path,
        on_progress: OnPlanProgress | None,
    ) -> BuiltPlan:
        entry = self.manifest.roles[role]
        if options.refittable and entry.adapt is None:
            raise EngineError(
                f"the {role} network of '{self.manifest.name}' cannot be fine-tuned, so its plan "
                "has no weights to refit: export it again with --finetune"
            )
        tensors = () if entry.adapt is None else entry.adapt.tensors
        built = build_plan(
            self.api,
            onnx_path,
            self.manifest.spec(role),
            precision=entry.precision,
            options=options,
            device=self.device,
            trained_weights=[tensor.name for tensor in tensors if tensor.scopes],
            timing_cache=self._read_timing_cache(),
            on_progress=on_progress,
        )
        # Fewer half layers than at export would mean that the parser took half for float.
        half = built.precision.network.half_arithmetic
        if half < entry.half_weights:
            raise EngineError(
                f"{entry.onnx} has {entry.half_weights} half-precision weights, but only {half} "
                f"layers of its network in {self.api.title} are half: export it again"
            )
        return built

    def _save(self, built: BuiltPlan, record: PlanRecord) -> Path:
        problem: OutputError | None = None
        for folder in self._folders():
            path = folder / record.key.file_name
            try:
                if folder == user_plans_dir():
                    make_private_folder(folder)
                else:
                    folder.mkdir(parents=True, exist_ok=True)
                write_bytes_atomically(path, built.data, durable=True)
                # The record comes second: a plan without a record is built again.
                write_text_atomically(record_path(path), _json_text(record), durable=True)
                if built.timing_cache is not None:
                    cache = folder / self._timing_cache_name
                    write_bytes_atomically(cache, built.timing_cache, durable=True)
            except OutputError as error:
                problem = error
            except OSError as error:
                problem = OutputError(f"{folder} cannot be made: {error.strerror or error}")
            else:
                return path
        raise problem or OutputError("there is no folder for plans")

    @property
    def _timing_cache_name(self) -> str:
        arch = "none" if self.device is None else self.device.arch
        return f"timing-{self.api.backend}-{arch}-{self.api.version}.cache"

    def _read_timing_cache(self) -> bytes | None:
        if self.api.is_rtx:
            return None
        for folder in self._folders():
            with contextlib.suppress(OSError):
                check_plain_file(path := folder / self._timing_cache_name)
                return path.read_bytes()
        return None

    def _folders(self) -> tuple[Path, ...]:
        """Return the folders of plans, the directory's folder first."""
        own = resolve_inside(self.directory, PLANS_DIR)
        cache = user_plans_dir()
        if cache is None:
            return (own,)
        return (cache,) if is_installed_weights(own) else (own, cache)


def user_plans_dir() -> Path | None:
    """Return the folder for plans of read-only directories; None without a home."""
    return user_cache_dir(PLANS_DIR)


def _records(folder: Path) -> Iterator[tuple[Path, PlanRecord]]:
    for path in visible_files(folder, "*.plan"):
        with contextlib.suppress(EngineError):
            yield path, load_record(path)


def _json_text(record: PlanRecord) -> str:
    return json.dumps(record.as_json(), indent=2) + "\n"

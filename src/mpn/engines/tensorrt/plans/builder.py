"""Parse an ONNX graph and build its plan in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn.cuda.device import CudaDevice
from mpn.engines.spec import OBJECTS_AXIS, EngineSpec, Precision, TensorSpec
from mpn.engines.tensorrt.api import TrtApi
from mpn.engines.tensorrt.plans.options import BuildOptions, ObjectProfile, object_profiles
from mpn.engines.tensorrt.plans.progress import BuildWatch, OnPlanProgress
from mpn.engines.tensorrt.plans.report import (
    LayerCount,
    PlanPrecision,
    count_layers,
    layer_count_from_inspector,
    with_half_inputs,
)
from mpn.errors import BackendError, EngineError

_ARITHMETIC_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_SHOWN_FAULTS = 3


class ParsedNetwork:
    """Strongly typed network of an ONNX file, with the parser that owns its weights.

    Args:
        api: The library.
        builder: Its builder.
        path: The graph; external data is in the same folder.
        spec: The interface it must have.
        half_inputs: Inputs that are declared as half precision.

    Raises:
        EngineError: If it cannot be parsed, or has another interface.
    """

    def __init__(
        self,
        api: TrtApi,
        builder: Any,
        path: Path,
        spec: EngineSpec,
        half_inputs: Sequence[str] = (),
    ) -> None:
        self._api, self._spec = api, spec
        self._half_inputs = tuple(half_inputs)
        self._file = path.name
        self.definition = api.check(
            builder.create_network(api.strongly_typed()), "making an empty network"
        )
        # The parser owns the weights that the network points to.
        self._parser = api.module.OnnxParser(self.definition, api.logger)
        if not self._parse(path):
            raise EngineError(
                f"{path.name} cannot be parsed by {api.title}: {self._faults()}: export it again"
            )
        api.messages.clear()
        self._check_interface()

    @property
    def layers(self) -> Iterator[Any]:
        """All layers, in order."""
        return (self.definition.get_layer(i) for i in range(self.definition.num_layers))

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Its input tensors, in order."""
        network = self.definition
        return tuple(network.get_input(i) for i in range(network.num_inputs))

    def layer_count(self) -> LayerCount:
        """Count the layers with floating-point outputs by the types in the graph."""
        kinds = self._api.module.DataType
        found = []
        for layer in self.layers:
            kind = _name_of(layer.type)
            if kind in ("CONSTANT", "SHAPE", "CAST") or layer.num_outputs == 0:
                continue
            dtype = layer.get_output_type(0)
            if dtype in (kinds.HALF, kinds.FLOAT):
                found.append((kind in _ARITHMETIC_LAYERS, dtype == kinds.HALF))
        return count_layers(found)

    def mark_refittable(self, names: Sequence[str]) -> None:
        """Mark weights as refittable in the built engine; the others are fixed.

        Raises:
            EngineError: If the network has no weight of a name.
        """
        for name in names:
            if not self.definition.mark_weights_refittable(name):
                raise EngineError(
                    f"weight '{name}' of {self._file} cannot be marked as refittable in "
                    f"{self._api.title}: export it again"
                )

    def inputs_used_as_half(self) -> tuple[str, ...]:
        """Return the inputs whose values are only read through a cast to half.

        If the caller rounds them to half, to nearest like the cast, the result is bit-identical.
        """
        half = self._api.module.DataType.HALF
        names = []
        for tensor in self.inputs:
            readers = [
                layer
                for layer in self.layers
                if _name_of(layer.type) != "SHAPE"  # which reads no value
                and any(
                    (source := layer.get_input(i)) is not None and source.name == tensor.name
                    for i in range(layer.num_inputs)
                )
            ]
            if readers and all(
                _name_of(layer.type) == "CAST" and layer.get_output_type(0) == half
                for layer in readers
            ):
                names.append(str(tensor.name))
        return tuple(names)

    def _parse(self, path: Path) -> bool:
        if not self._half_inputs:
            return bool(self._parser.parse_from_file(str(path)))
        try:
            model = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path} cannot be read: {error.strerror or error}") from error
        # The parser resolves external data relative to the path.
        return bool(self._parser.parse(with_half_inputs(model, self._half_inputs), str(path)))

    def _check_interface(self) -> None:
        network = self.definition
        outputs = tuple(network.get_output(i) for i in range(network.num_outputs))
        differences = [
            *self._differences("input", self._spec.inputs, self.inputs),
            *self._differences("output", self._spec.outputs, outputs),
        ]
        if differences:
            raise EngineError(
                f"{self._file} is not the {self._spec.role} engine of this manifest: "
                f"{'; '.join(differences)}: export it again"
            )

    def _differences(
        self, kind: str, expected: Sequence[TensorSpec], found: Sequence[Any]
    ) -> list[str]:
        by_name = {tensor.name: tensor for tensor in found}
        differences = [
            f"{kind} '{name}' is surplus"
            for name in by_name
            if name not in {tensor.name for tensor in expected}
        ]
        for tensor in expected:
            got = by_name.get(tensor.name)
            if got is None:
                differences.append(f"{kind} '{tensor.name}' is missing")
                continue
            shape = tuple(-1 if isinstance(size, str) else size for size in tensor.shape)
            dtype = self._api.numpy_dtype(got.dtype)
            wanted_dtype = "float16" if tensor.name in self._half_inputs else tensor.dtype
            # Of an output, sizes that follow from the input may be unknown to the parser.
            fits = len(shape) == len(tuple(got.shape)) and all(
                want == size or (kind == "output" and size == -1)
                for want, size in zip(shape, tuple(got.shape), strict=True)
            )
            if not fits or dtype != wanted_dtype:
                found_text = f"{kind} '{tensor.name}' {dtype} {tuple(got.shape)}"
                differences.append(f"{found_text}, expected {tensor.describe()}")
        return differences

    def _faults(self) -> str:
        faults = []
        for index in range(min(self._parser.num_errors, _SHOWN_FAULTS)):
            fault = self._parser.get_error(index)
            place = " ".join(filter(None, (fault.node_operator(), fault.node_name())))
            where = f" at node {place}" if place else ""
            faults.append(f"{' '.join(fault.desc().split())}{where}")
        return "; ".join(faults) or self._api.pop_errors()


def _name_of(kind: Any) -> str:
    """Return ``"CONVOLUTION"`` for ``LayerType.CONVOLUTION``."""
    return str(getattr(kind, "name", kind)).rpartition(".")[2]


_TURING = "sm_75"
_MIB = 1 << 20


@dataclass(frozen=True)
class BuiltPlan:
    """Plan in memory, with its precision and build time.

    Attributes:
        data: The serialised engine.
        precision: Layers in half precision.
        half_inputs: Inputs that it takes in half precision.
        build_s: Build time in seconds.
        timing_cache: Timings of kernels on this GPU; None if the library has no timing cache.
    """

    data: bytes
    precision: PlanPrecision
    half_inputs: tuple[str, ...]
    build_s: float
    timing_cache: bytes | None


def build_plan(
    api: TrtApi,
    onnx_path: Path,
    spec: EngineSpec,
    *,
    precision: Precision,
    options: BuildOptions | None = None,
    device: CudaDevice | None = None,
    trained_weights: Sequence[str] = (),
    timing_cache: bytes | None = None,
    on_progress: OnPlanProgress | None = None,
) -> BuiltPlan:
    """Build a plan.

    Args:
        api: The library.
        onnx_path: The graph; external data is in the same folder.
        spec: The interface it must have.
        precision: Precision of the graph.
        options: See :class:`BuildOptions`.
        device: The GPU of the build. None builds without a GPU, for all GPUs from Ampere on; only
            TensorRT for RTX supports that.
        trained_weights: Names of the weights that ``options.refittable`` marks.
        timing_cache: From an earlier build with this library on this GPU, or None.
        on_progress: Called with the progress; an exception in it cancels the build.

    Returns:
        The plan.

    Raises:
        BackendError: If it needs a GPU and there is none.
        EngineError: If the graph cannot be parsed or built, or an fp16 plan has no half layer.
    """
    options = options or BuildOptions()
    _check_device(api, options, device)
    started_s = time.monotonic()
    if device is not None:
        device.activate()
    builder = _make_builder(api)
    network = ParsedNetwork(api, builder, onnx_path, spec)
    half_inputs = network.inputs_used_as_half() if options.half_inputs else ()
    if half_inputs:
        network = ParsedNetwork(api, builder, onnx_path, spec, half_inputs)
    count = network.layer_count()
    what = f"the {spec.role} plan"
    PlanPrecision(count, None).check(precision, what)
    config = _make_config(api, builder, options, device)
    if options.refittable:
        network.mark_refittable(trained_weights)
    _add_profiles(api, builder, config, network, object_profiles(spec))
    cache = None if api.is_rtx else _use_timing_cache(api, config, timing_cache)
    watch = BuildWatch(spec.role, on_progress)
    monitor = watch.monitor(api.module)
    config.progress_monitor = monitor
    memory = builder.build_serialized_network(network.definition, config)
    watch.raise_callback_error()
    data = bytes(api.check(memory, f"building {what} from {onnx_path.name}"))
    result = PlanPrecision(count, *_inspect_layers(api, data, options, device))
    result.check(precision, what)
    return BuiltPlan(
        data=data,
        precision=result,
        half_inputs=half_inputs,
        build_s=time.monotonic() - started_s,
        timing_cache=None if cache is None else bytes(cache.serialize()),
    )


def _check_device(api: TrtApi, options: BuildOptions, device: CudaDevice | None) -> None:
    if device is not None:
        return
    if not api.is_rtx:
        raise BackendError(
            f"{api.title} builds a plan only on the GPU that runs it, and there is none here: "
            "build on that machine, or build for backend tensorrt-rtx, which needs none"
        )
    if options.refittable:
        raise BackendError(
            f"{api.title} builds a refittable plan on a GPU only, and there is none here: build on "
            "the machine that runs it, or leave that out"
        )


def _make_builder(api: TrtApi) -> Any:
    try:
        builder = api.module.Builder(api.logger)
    except Exception as error:  # pybind11 raises a TypeError if the factory returns nothing
        raise BackendError(
            f"{api.title} makes no builder here ({api.pop_errors()}): check nvidia-smi"
        ) from error
    return api.check(builder, "making a builder")


def _make_config(
    api: TrtApi, builder: Any, options: BuildOptions, device: CudaDevice | None
) -> Any:
    module = api.module
    config = api.check(builder.create_builder_config(), "making a builder configuration")
    flags = module.BuilderFlag
    # The layer report, read after the build, has types only with this.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if options.tf32:
        config.set_flag(flags.TF32)
    else:
        config.clear_flag(flags.TF32)  # on by default
    if options.refittable:
        config.set_flag(flags.REFIT_INDIVIDUAL)
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if api.is_rtx:
        # Without it the runtime allocates memory, which no stream capture allows.
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
        if device is not None and device.arch == _TURING:
            config.num_compute_capabilities = 1
            api.check(
                config.set_compute_capability(module.ComputeCapability.SM75, 0),
                "selecting Turing",
            )
    elif options.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    return config


def _add_profiles(
    api: TrtApi,
    builder: Any,
    config: Any,
    network: ParsedNetwork,
    profiles: tuple[ObjectProfile, ...],
) -> None:
    for expected, profile in enumerate(profiles):
        made = api.check(builder.create_optimization_profile(), "making an optimisation profile")
        for tensor in network.inputs:
            rest = tuple(tensor.shape)[1:]
            made.set_shape(tensor.name, *((count, *rest) for count in profile.counts))
        if not made:  # the bindings check that the three shapes fit each other
            raise EngineError(f"{api.title} refuses the profile of {profile.counts} {OBJECTS_AXIS}")
        index = api.check(config.add_optimization_profile(made), "adding an optimisation profile")
        if index != expected:
            raise EngineError(
                f"{api.title} refuses the profile of {profile.counts} {OBJECTS_AXIS} "
                f"({api.pop_errors()})"
            )


def _use_timing_cache(api: TrtApi, config: Any, data: bytes | None) -> Any:
    """Set the timing cache of a builder configuration to ``data`` or an empty one."""
    for content in (data, b"") if data else (b"",):
        cache = config.create_timing_cache(content)
        # False: of another GPU or version. The next one is the empty cache.
        if cache is not None and config.set_timing_cache(cache, False):
            api.messages.clear()
            return cache
    raise EngineError(f"{api.title} takes no timing cache: {api.pop_errors()}")


def _inspect_layers(
    api: TrtApi, data: bytes, options: BuildOptions, device: CudaDevice | None
) -> tuple[Any, str]:
    """Count the layers of the built engine; without a GPU return None and the reason."""
    if device is None:
        return None, "not inspected: loading an engine needs a GPU, and it was built without one"
    runtime = api.check(api.module.Runtime(api.logger), "making a runtime")
    # Version-compatible plans contain code for the host, and do not load without this.
    runtime.engine_host_code_allowed = options.version_compatible
    engine = api.check(runtime.deserialize_cuda_engine(data), "reading the plan back")
    inspector = api.check(engine.create_engine_inspector(), "making an engine inspector")
    text = inspector.get_engine_information(api.module.LayerInformationFormat.JSON)
    return layer_count_from_inspector(text), ""

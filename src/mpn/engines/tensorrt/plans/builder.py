"""One graph to one plan, in memory."""

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
    """A strongly typed network made from an ONNX file, and what keeps it alive.

    Args:
        api: The library.
        builder: Its builder.
        path: The graph; external data lies beside it.
        spec: The interface it must have.
        half_inputs: Inputs that are to be taken in half precision instead.

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
        """Layers that compute on floating-point values, by the types the graph gives them."""
        kinds = self._api.module.DataType
        told = []
        for layer in self.layers:
            kind = _name_of(layer.type)
            if kind in ("CONSTANT", "SHAPE", "CAST") or layer.num_outputs == 0:
                continue
            dtype = layer.get_output_type(0)
            if dtype in (kinds.HALF, kinds.FLOAT):
                told.append((kind in _ARITHMETIC_LAYERS, dtype == kinds.HALF))
        return count_layers(told)

    def mark_refittable(self, names: Sequence[str]) -> None:
        """Let these weights, and no others, be exchanged in the built engine.

        Raises:
            EngineError: If one is not in the network under its name.
        """
        for name in names:
            if not self.definition.mark_weights_refittable(name):
                raise EngineError(
                    f"weight '{name}' of {self._file} cannot be marked for exchange in "
                    f"{self._api.title}: export it again"
                )

    def inputs_used_as_half(self) -> tuple[str, ...]:
        """Inputs of which the graph uses nothing but the value rounded to half precision.

        Every layer that reads them is a cast to half: taken in half precision, the result is the
        same to the last bit, as long as the caller rounds to nearest as the cast does.
        """
        half = self._api.module.DataType.HALF
        names = []
        for tensor in self.inputs:
            readers = [
                layer
                for layer in self.layers
                if any(
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
        # The path tells where external data lies.
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
    """``"CONVOLUTION"`` of ``LayerType.CONVOLUTION``."""
    return str(getattr(kind, "name", kind)).rpartition(".")[2]


_TURING = "sm_75"
_MIB = 1 << 20


@dataclass(frozen=True)
class BuiltPlan:
    """A plan, and what is known about it.

    Attributes:
        data: The serialised engine.
        precision: What it computes in.
        half_inputs: Inputs that it takes in half precision.
        build_s: Seconds it took.
        timing_cache: What the library learnt about this GPU; None where it keeps no such thing.
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
        onnx_path: The graph; external data lies beside it.
        spec: The interface it must have.
        precision: What it was exported in.
        options: See :class:`BuildOptions`.
        device: The GPU it is built on; None: there is none, which only TensorRT for RTX can do, for
            all GPUs from Ampere on.
        trained_weights: Names of the weights that ``options.refittable`` is about.
        timing_cache: From an earlier build with this library on this GPU, or None.
        on_progress: Told how far it is; what it raises cancels the build.

    Returns:
        The plan.

    Raises:
        BackendError: If it needs a GPU and there is none.
        EngineError: If the graph cannot be parsed or built, or is not half although it should be.
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
    watch.raise_kept()
    data = bytes(api.check(memory, f"building {what} from {onnx_path.name}"))
    result = PlanPrecision(count, *_look_inside(api, data, options, device))
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
            f"{api.title} builds a plan on the GPU that it is for, and there is none here: build "
            "on that machine, or build for backend tensorrt-rtx, which needs none"
        )
    if options.refittable:
        raise BackendError(
            f"{api.title} builds a plan whose weights can be exchanged on a GPU only, and there is "
            "none here: build on the machine that runs it, or leave that out"
        )


def _make_builder(api: TrtApi) -> Any:
    try:
        builder = api.module.Builder(api.logger)
    except Exception as error:  # pybind11 raises a TypeError where the factory gives nothing
        raise BackendError(
            f"{api.title} makes no builder here ({api.pop_errors()}): see what nvidia-smi says"
        ) from error
    return api.check(builder, "making a builder")


def _make_config(
    api: TrtApi, builder: Any, options: BuildOptions, device: CudaDevice | None
) -> Any:
    module = api.module
    config = api.check(builder.create_builder_config(), "making a builder configuration")
    flags = module.BuilderFlag
    # The layer report is read after the build, and tells types only then.
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
        # Without it the runtime allocates on its own, which no stream capture allows.
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
        if device is not None and device.arch == _TURING:
            config.num_compute_capabilities = 1
            api.check(
                config.set_compute_capability(module.ComputeCapability.SM75, 0),
                "asking for a plan for Turing",
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
        if not made:  # the bindings' own check that the three shapes fit each other
            raise EngineError(f"{api.title} refuses the profile of {profile.counts} {OBJECTS_AXIS}")
        index = api.check(config.add_optimization_profile(made), "adding an optimisation profile")
        if index != expected:
            raise EngineError(
                f"{api.title} refuses the profile of {profile.counts} {OBJECTS_AXIS} "
                f"({api.pop_errors()})"
            )


def _use_timing_cache(api: TrtApi, config: Any, data: bytes | None) -> Any:
    """A timing cache the builder reads and writes: the given one, or an empty one."""
    for content in (data, b"") if data else (b"",):
        cache = config.create_timing_cache(content)
        # False: of another GPU or version. It is then as if there were none.
        if cache is not None and config.set_timing_cache(cache, False):
            api.messages.clear()
            return cache
    raise EngineError(f"{api.title} takes no timing cache: {api.pop_errors()}")


def _look_inside(
    api: TrtApi, data: bytes, options: BuildOptions, device: CudaDevice | None
) -> tuple[Any, str]:
    """Layers of the built engine, or None and why."""
    if device is None:
        return None, "not looked at: reading an engine back takes a GPU, and it was built without"
    runtime = api.check(api.module.Runtime(api.logger), "making a runtime")
    # Version-compatible plans carry code for the host, and do not load without.
    runtime.engine_host_code_allowed = options.version_compatible
    engine = api.check(runtime.deserialize_cuda_engine(data), "reading the plan back")
    inspector = api.check(engine.create_engine_inspector(), "making an engine inspector")
    text = inspector.get_engine_information(api.module.LayerInformationFormat.JSON)
    return layer_count_from_inspector(text), ""

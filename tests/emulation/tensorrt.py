"""Emulate the Python module of TensorRT 10.14, 11.x or TensorRT for RTX.

Plans contain the ONNX graph. Engines run it with onnxruntime on the CPU when the stream of
:mod:`tests.emulation.driver` reaches the call, so the masks are correct and all other code is the
project's. The emulated versions differ as the real ones do: a test compares the names with the
bindings (``tests/engines/tensorrt/tensorrt_api.json``).
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from tests.emulation.driver import FakeDriver

Flavour = Literal["10", "11", "rtx"]
VERSIONS: Mapping[Flavour, str] = {"10": "10.14.1.48", "11": "11.4.0.106", "rtx": "1.7.1.116"}
_LAYER_OF = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY",
    "Cast": "CAST",
    "Relu": "ACTIVATION",
    "Sigmoid": "ACTIVATION",
}


@dataclass
class Behaviour:
    """Faults of the library, for tests of errors.

    Attributes:
        refuse: Names of methods that return None or False.
        refuse_plans: Whether no plan can be loaded.
        drop_bias: Whether a refitted engine loses its last weight, a known fault.
        ignore_refit: Whether refitting returns true without effect.
        capturable: Return value of RTX's ``is_stream_capturable``.
        log: Names of the calls, in order.
    """

    refuse: set[str] = field(default_factory=set)
    refuse_plans: bool = False
    drop_bias: bool = False
    ignore_refit: bool = False
    capturable: bool = True
    log: list[str] = field(default_factory=list)


def make_tensorrt(flavour: Flavour, driver: FakeDriver | None) -> Any:
    """Create a fake module.

    Args:
        flavour: Version of the library.
        driver: Fake driver that runs the engines; None: there is no GPU.
    """
    module = types.ModuleType("tensorrt_rtx" if flavour == "rtx" else "tensorrt")
    behaviour = Behaviour()
    parts = {"trt": module, "driver": driver, "behaviour": behaviour, "flavour": flavour}

    def enum(name: str, **members: int) -> Any:
        made = IntEnum(name, members)  # type: ignore[misc]
        setattr(module, name, made)
        return made

    enum("DataType", FLOAT=0, HALF=1, INT64=8)
    enum("TensorIOMode", NONE=0, INPUT=1, OUTPUT=2)
    flags = {"REFIT": 4, "TF32": 6, "VERSION_COMPATIBLE": 12, "REFIT_INDIVIDUAL": 22}
    if flavour == "10":
        flags |= {"FP16": 0, "VERSION_COMPATIBLE": 13, "REFIT_INDIVIDUAL": 23}
    if flavour == "rtx":
        flags |= {"REQUIRE_USER_ALLOCATION": 28}
        enum("ComputeCapability", CURRENT=1, SM75=75)
        enum("CudaGraphStrategy", DISABLED=0, WHOLE_GRAPH_CAPTURE=1)
        enum("DynamicShapesKernelSpecializationStrategy", LAZY=0, EAGER=1, NONE=2)
    enum("BuilderFlag", **flags)
    enum("NetworkDefinitionCreationFlag", STRONGLY_TYPED=1 if flavour == "10" else 0)
    enum("ProfilingVerbosity", LAYER_NAMES_ONLY=0, NONE=1, DETAILED=2)
    enum("LayerInformationFormat", ONELINE=0, JSON=1)
    enum("MemoryPoolType", WORKSPACE=0)
    enum("HardwareCompatibilityLevel", NONE=0, AMPERE_PLUS=1)
    enum("ExecutionContextAllocationStrategy", STATIC=0, ON_PROFILE_CHANGE=1, USER_MANAGED=2)
    enum("LayerType", CONVOLUTION=0, CAST=1, ACTIVATION=2, DECONVOLUTION=3, MATRIX_MULTIPLY=4,
         ELEMENTWISE=5)  # fmt: skip
    for cls in (_ILogger, _Builder, _OnnxParser, _Runtime, _Refitter, _Weights, _IProgressMonitor):
        name = cls.__name__.removeprefix("_")
        setattr(module, name, type(name, (cls,), parts))
    module.__version__ = VERSIONS[flavour]  # type: ignore[attr-defined]
    module.behaviour = behaviour  # type: ignore[attr-defined]
    return module


def install_tensorrt(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, driver: FakeDriver | None
) -> Any:
    """Replace one library by a fake during a test; the other is not installed."""
    module = make_tensorrt(flavour, driver)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


class _Part:
    trt: Any
    driver: FakeDriver | None
    behaviour: Behaviour
    flavour: Flavour
    _logger: Any = None

    def _make(self, cls: Any, *arguments: Any) -> Any:
        parts = {name: getattr(self, name) for name in ("trt", "driver", "behaviour", "flavour")}
        made = type(cls.__name__.removeprefix("_"), (cls,), parts)(*arguments)
        made._logger = self._logger
        return made

    def _refuses(self, method: str) -> bool:
        self.behaviour.log.append(method)
        if method in self.behaviour.refuse:
            self._complain(f"{method} is set to fail")
            return True
        return False

    def _complain(self, text: str) -> None:
        self._logger.log(self.trt.ILogger.Severity.ERROR, f"Error Code 1: {text}")


class _ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class _IProgressMonitor: ...


class _Weights:
    def __init__(self, values: Any) -> None:
        self.values = np.array(values)
        self.size = values.size
        self.dtype = values.dtype


class _Tensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class _Layer:
    def __init__(self, kind: Any, inputs: list[_Tensor], dtype: Any) -> None:
        self.type, self._inputs, self._dtype = kind, inputs, dtype
        self.num_inputs, self.num_outputs = len(inputs), 1

    def get_input(self, index: int) -> _Tensor:
        return self._inputs[index]

    def get_output_type(self, index: int) -> Any:
        return self._dtype


class _INetworkDefinition(_Part):
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._inputs: list[_Tensor] = []
        self._outputs: list[_Tensor] = []
        self._layers: list[_Layer] = []
        self._model: onnx.ModelProto = onnx.ModelProto()
        self._marked: list[str] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> _Tensor:
        return self._inputs[index]

    def get_output(self, index: int) -> _Tensor:
        return self._outputs[index]

    def get_layer(self, index: int) -> _Layer:
        return self._layers[index]

    def mark_weights_refittable(self, name: str) -> bool:
        if self._refuses("mark_weights_refittable"):
            return False
        known = {tensor.name for tensor in self._model.graph.initializer}
        self._marked.append(name)
        return name in known


class _IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]

    def __bool__(self) -> bool:
        return all(
            all(a <= b <= c for a, b, c in zip(*shapes, strict=True))
            for shapes in self._shapes.values()
        )


class _ITimingCache(_Part):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"learnt;"


class _IBuilderConfig(_Part):
    def __init__(self) -> None:
        self._flags: set[int] = {self.trt.BuilderFlag.TF32}
        self._profiles: list[_IOptimizationProfile] = []
        self.profiling_verbosity = self.trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = self.trt.HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self.progress_monitor: Any = None
        if self.flavour == "rtx":
            self.num_compute_capabilities = 0

    def set_flag(self, flag: int) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: int) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: int, pool_size: int) -> None:
        self.behaviour.log.append(f"workspace {pool_size}")

    def set_compute_capability(self, compute_capability: int, index: int) -> bool:
        self.behaviour.log.append(f"capability {compute_capability}")
        return True

    def add_optimization_profile(self, profile: _IOptimizationProfile) -> int:
        if self._refuses("add_optimization_profile"):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        assert self.flavour != "rtx", "with a timing cache the builder of RTX needs a GPU"
        if self._refuses("create_timing_cache"):
            return None
        return self._make(_ITimingCache, bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return b"other GPU" not in cache._content


class _Builder(_Part):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        if self.driver is None and self.flavour != "rtx":
            self._complain("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> Any:
        # In 10.x, a network without the flag may get other types than the graph.
        assert flags == 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return None if self._refuses("create_network") else self._make(_INetworkDefinition, flags)

    def create_builder_config(self) -> Any:
        if self._refuses("create_builder_config"):
            return None
        return self._make(_IBuilderConfig)

    def create_optimization_profile(self) -> Any:
        return _IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        monitor, flags = config.progress_monitor, self.trt.BuilderFlag
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building engine", step):
                    return None
            monitor.phase_finish("Building engine")
        if self._refuses("build_serialized_network"):
            return None
        refit = config.get_flag(flags.REFIT_INDIVIDUAL)
        if refit and self.driver is None:
            self._complain("Myelin (CHECK(status == CUDA_SUCCESS) failed)")
            return None
        header = {
            "flavour": self.flavour,
            "profiles": [profile._shapes for profile in config._profiles],
            "refittable": network._marked if refit else None,
            "detailed": config.profiling_verbosity == self.trt.ProfilingVerbosity.DETAILED,
            "tf32": config.get_flag(flags.TF32),
            "portable": config.hardware_compatibility_level,
            "host_code": config.get_flag(flags.VERSION_COMPATIBLE),
        }
        head = json.dumps(header).encode()
        return len(head).to_bytes(8, "little") + head + network._model.SerializeToString()


class _ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "node_of_trouble"

    def node_operator(self) -> str:
        return "GridSample"


class _OnnxParser(_Part):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[_ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        return self.parse(Path(model).read_bytes(), model)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        if self._refuses("parse"):
            self._errors.append(_ParserError("Assertion failed: it is of a bad kind"))
            return False
        parsed = onnx.load_from_string(model)
        assert path is not None
        onnx.load_external_data_for_model(parsed, str(Path(path).parent))
        network, kinds = self._network, self.trt.DataType
        types_of = {TensorProto.FLOAT: kinds.FLOAT, TensorProto.FLOAT16: kinds.HALF}
        network._model = parsed
        inferred = onnx.shape_inference.infer_shapes(parsed, strict_mode=True)
        found: dict[str, Any] = {
            tensor.name: types_of.get(tensor.data_type, kinds.INT64)
            for tensor in parsed.graph.initializer
        }
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            found[value.name] = types_of.get(value.type.tensor_type.elem_type, kinds.INT64)
        for values, into in (
            (inferred.graph.input, network._inputs),
            (inferred.graph.output, network._outputs),
        ):
            for value in values:
                shape = tuple(
                    -1 if size.dim_param else size.dim_value
                    for size in value.type.tensor_type.shape.dim
                )
                into.append(_Tensor(value.name, shape, found[value.name]))
        for node in parsed.graph.node:
            kind = getattr(self.trt.LayerType, _LAYER_OF.get(node.op_type, "ELEMENTWISE"))
            sources = [_Tensor(name, (), found.get(name)) for name in node.input]
            network._layers.append(_Layer(kind, sources, found[node.output[0]]))
        return True


class _Runtime(_Part):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        if self.driver is None or self.behaviour.refuse_plans:
            self._complain("the plan is of another version")
            return None
        if self._refuses("deserialize_cuda_engine"):
            return None
        try:
            size = int.from_bytes(serialized_engine[:8], "little")
            header = json.loads(serialized_engine[8 : 8 + size])
            model = onnx.load_from_string(serialized_engine[8 + size :])
        except Exception:
            self._complain("magic tag does not match")
            return None
        if header["host_code"] and not self.engine_host_code_allowed:
            self._complain("host executable code is not allowed")
            return None
        return self._make(_ICudaEngine, header, model)


class _ICudaEngine(_Part):
    def __init__(self, header: dict[str, Any], model: onnx.ModelProto) -> None:
        self._header, self._model = header, model
        kinds, modes = self.trt.DataType, self.trt.TensorIOMode
        self._tensors: dict[str, tuple[Any, tuple[int, ...], Any]] = {}
        for values, mode in ((model.graph.input, modes.INPUT), (model.graph.output, modes.OUTPUT)):
            for value in values:
                kind = value.type.tensor_type
                shape = tuple(-1 if d.dim_param else d.dim_value for d in kind.shape.dim)
                dtype = kinds.HALF if kind.elem_type == TensorProto.FLOAT16 else kinds.FLOAT
                self._tensors[value.name] = (mode, shape, dtype)
        self.refittable = header["refittable"] is not None
        self.device_memory_size_v2 = 1000
        self._load()

    def _load(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name][2]

    def create_engine_inspector(self) -> Any:
        return None if self._refuses("create_engine_inspector") else self._make(_Inspector, self)

    def create_runtime_config(self) -> Any:
        return None if self._refuses("create_runtime_config") else self._make(_IRuntimeConfig)

    def create_execution_context(self, runtime_config: Any) -> Any:
        if self._refuses("create_execution_context"):
            return None
        assert runtime_config._strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._make(_IExecutionContext, self)


class _Inspector(_Part):
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        assert format == self.trt.LayerInformationFormat.JSON
        model = onnx.shape_inference.infer_shapes(self._engine._model)
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        half = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}

        def tensor(name: str) -> dict[str, Any]:
            kind = "Half" if name in half else "Float"
            if self.flavour == "10":
                word = {"Half": "FP16", "Float": "FP32"}[kind]
                text = f"Row major linear {word} format (kLINEAR)"
                return {"Name": name, "Format/Datatype": text}
            return {"Name": name, "Format": "Row major linear", "DataType": kind}

        if not self._engine._header["detailed"]:
            return json.dumps({"Layers": [node.name or node.op_type for node in model.graph.node]})
        return json.dumps(
            {
                "Layers": [
                    {
                        "Name": node.name,
                        "LayerType": "CaskConvolution" if node.op_type == "Conv" else node.op_type,
                        "Inputs": [tensor(name) for name in node.input[:1]],
                        "Outputs": [tensor(name) for name in node.output],
                    }
                    for node in model.graph.node
                ]
            }
        )


class _IRuntimeCache(_Part):
    def __init__(self) -> None:
        self._content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.behaviour.log.append(f"kernels {len(blob)}")
        self._content = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self._content or b"kernels of this GPU"


class _IRuntimeConfig(_Part):
    def __init__(self) -> None:
        self._strategy: Any = None
        self._cache: Any = None
        if self.flavour == "rtx":
            self.cuda_graph_strategy: Any = None
            self.dynamic_shapes_kernel_specialization_strategy: Any = None
            self.create_runtime_cache = lambda: self._make(_IRuntimeCache)
            self.get_runtime_cache = lambda: self._cache

            def set_runtime_cache(cache: Any) -> bool:
                self._cache = cache
                return True

            self.set_runtime_cache = set_runtime_cache

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


class _IExecutionContext(_Part):
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._has_run = False
        if self.flavour == "rtx":
            self.is_stream_capturable = lambda stream: self.behaviour.capturable

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        self._memory = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.behaviour.log.append(f"profile {profile_index}")
        self._profile = profile_index
        return not self._refuses("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._refuses("set_input_shape"):
            return False
        for least, _, most in (
            (self._engine._header["profiles"][self._profile][name],)
            if (self._engine._header["profiles"])
            else ()
        ):
            if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
                self._complain(f"{shape} does not fit profile {self._profile}")
                return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return ["rgb_prob"] if "infer_shapes" in self.behaviour.refuse else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        mode, shape, _ = self._engine._tensors[name]
        if mode == self.trt.TensorIOMode.INPUT:
            return self._shapes[name]
        count = next(iter(self._shapes.values()))[0]
        return tuple(count if size == -1 else size for size in shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return not self._refuses("set_tensor_address")

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._refuses("execute_async_v3"):
            return False
        assert self.driver is not None
        assert self._memory is not None, "a context without memory"
        assert set(self._addresses) == set(self._engine._tensors), "tensors without an address"
        if self.driver._streams[stream_handle].recording is not None:
            assert self._has_run, "TensorRT needs a run before a capture"
        self._has_run = True
        self.driver.enqueue(stream_handle, self._compute)
        return True

    def _compute(self) -> None:
        assert self.driver is not None
        engine, half = self._engine, self.trt.DataType.HALF

        def array(name: str) -> Any:
            dtype = np.float16 if engine._tensors[name][2] == half else np.float32
            return self.driver.array(  # type: ignore[union-attr]
                self._addresses[name], self.get_tensor_shape(name), dtype
            )

        outputs = [
            name
            for name, (mode, *_) in engine._tensors.items()
            if mode == self.trt.TensorIOMode.OUTPUT
        ]
        feeds = {name: array(name).copy() for name in self._shapes}
        for name, values in zip(outputs, engine._session.run(outputs, feeds), strict=True):
            array(name)[...] = values


class _Refitter(_Part):
    def __init__(self, engine: Any, logger: Any) -> None:
        self._engine, self._logger = engine, logger
        self._given: dict[str, Any] = {}

    def get_all_weights(self) -> list[str]:
        return list(self._engine._header["refittable"] or ())

    def get_weights_prototype(self, weights_name: str) -> Any:
        values = numpy_helper.to_array(self._initializer(weights_name))
        prototype = _Weights(values)
        kinds = self.trt.DataType
        prototype.dtype = kinds.HALF if values.dtype == np.float16 else kinds.FLOAT
        return prototype

    def set_named_weights(self, name: str, weights: Any) -> bool:
        self._given[name] = weights
        return not self._refuses("set_named_weights")

    def get_missing_weights(self) -> list[str]:
        return ["fused.bias"] if "get_missing_weights" in self.behaviour.refuse else []

    def refit_cuda_engine(self) -> bool:
        if self._refuses("refit_cuda_engine"):
            return False
        if self.behaviour.ignore_refit:
            return True
        for index, (name, weights) in enumerate(self._given.items()):
            tensor = self._initializer(name)
            values = weights.values.reshape(tuple(tensor.dims))
            if self.behaviour.drop_bias and index == len(self._given) - 1:
                values = np.zeros_like(values)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
        self._engine._load()
        return True

    def _initializer(self, name: str) -> Any:
        return next(t for t in self._engine._model.graph.initializer if t.name == name)

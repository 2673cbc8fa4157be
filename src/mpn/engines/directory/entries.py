"""Define the parts of a manifest, each a record that checks its own values.

msgspec reads them by their annotations (:mod:`mpn._common.records`); the order of the fields is
that of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from mpn._common.records import json_from_record
from mpn._common.validation import repeated
from mpn.engines.directory.files import FileDigest, ManifestFieldError
from mpn.engines.spec import Precision, TensorSpec

DisPreset = Literal["ultrafast", "fast", "medium"]
DIS_PRESETS: tuple[DisPreset, ...] = get_args(DisPreset)
ENGINE_SOURCE: Literal["engine"] = "engine"
DIS_SOURCE: Literal["opencv-dis"] = "opencv-dis"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

ChannelOrder = Literal["rgb", "bgr"]

FinetuneScope = Literal["all", "head"]
"""``all``: every weight is trained; ``head``: those after a frozen trunk, on its features."""
FINETUNE_SCOPES: tuple[FinetuneScope, ...] = get_args(FinetuneScope)

FinetuneOptimizer = Literal["sgd", "adamw"]
FINETUNE_OPTIMIZERS: tuple[FinetuneOptimizer, ...] = get_args(FinetuneOptimizer)

StoredDtype = Literal["float32", "float16"]
STORED_DTYPES: tuple[StoredDtype, ...] = get_args(StoredDtype)
_BYTES: Mapping[StoredDtype, int] = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class FlowSource:
    """The source of the optical flow.

    Attributes:
        source: ``"engine"``: the directory's flow engine; ``"opencv-dis"``: OpenCV's DIS.
        preset: DIS preset; without meaning for an engine.
        scale: Size at which DIS runs, relative to the working frame, 0 < scale <= 1; the flow is
            resized and multiplied back. Without meaning for an engine.
    """

    source: Literal["engine", "opencv-dis"]
    preset: DisPreset = "medium"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.source not in (ENGINE_SOURCE, DIS_SOURCE):
            raise ManifestFieldError("source", f"is unknown: {self.source!r}")
        if self.preset not in DIS_PRESETS:
            raise ManifestFieldError("preset", f"is unknown: {self.preset!r}")
        if not 0.0 < self.scale <= 1.0:
            raise ManifestFieldError("scale", f"must be over 0 and at most 1, got {self.scale}")

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, without fields that the source does not use."""
        return {"source": ENGINE_SOURCE} if self.source == ENGINE_SOURCE else json_from_record(self)


@dataclass(frozen=True)
class PropagationPreprocessing:
    """Normalisation of the propagation crop: (rgb / 255 - mean) / std.

    Attributes:
        mean_rgb: Mean of RGB / 255. Default: ImageNet, as in jfzhang95/pytorch-deeplab-xception.
        std_rgb: Standard deviation of RGB / 255, each over 0. Same source.
    """

    mean_rgb: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std_rgb: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if min(self.std_rgb) <= 0.0:
            raise ManifestFieldError("std_rgb", f"must be over 0, got {self.std_rgb}")


@dataclass(frozen=True)
class OsvosPreprocessing:
    """Normalisation of the OSVOS frame: channel order, 0..255, minus the mean.

    Attributes:
        channel_order: ``"bgr"`` for the public layout (Caffe's VGG16).
        mean: Mean of 0..255 in ``channel_order``. Default: that of the public OSVOS parents.
    """

    channel_order: ChannelOrder = "bgr"
    mean: tuple[float, float, float] = (104.00699, 116.66877, 122.67892)


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation of the network inputs; the flow engine takes RGB 0..255."""

    propagation: PropagationPreprocessing = field(default_factory=PropagationPreprocessing)
    osvos: OsvosPreprocessing = field(default_factory=OsvosPreprocessing)


@dataclass(frozen=True)
class WeightTensor:
    """One weight of an inference graph, as bytes of its external data.

    Attributes:
        name: Of the initialiser in ``<role>.onnx`` and of the input in the fine-tuning graphs.
        shape: Sizes, row-major.
        file: The external data, relative to the directory.
        offset: First byte.
        nbytes: Number of bytes, little endian.
        dtype: Type of the stored values.
        scale: Stored value divided by the value that is trained: the trunk of a half-precision
            OSVOS is rescaled, so that its activations fit.
        scopes: Scopes that train it, each once; empty for a weight that none trains.
    """

    name: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    dtype: StoredDtype
    scale: float
    scopes: tuple[FinetuneScope, ...]

    def __post_init__(self) -> None:
        if self.dtype not in STORED_DTYPES:
            raise ManifestFieldError("dtype", f"is unknown: {self.dtype!r}")
        if min(self.shape, default=1) < 1:
            raise ManifestFieldError("shape", f"must hold sizes above 0, got {self.shape}")
        if self.offset < 0:
            raise ManifestFieldError("offset", f"must be at least 0, got {self.offset}")
        expected = math.prod(self.shape) * _BYTES[self.dtype]
        if self.nbytes != expected:
            raise ManifestFieldError(
                "nbytes", f"must be {expected} for {self.dtype} {self.shape}, got {self.nbytes}"
            )
        if not self.scale > 0:
            raise ManifestFieldError("scale", f"must be over 0, got {self.scale}")
        if len(set(self.scopes)) != len(self.scopes):
            raise ManifestFieldError("scopes", f"must have each scope once, got {self.scopes}")


@dataclass(frozen=True)
class FinetuneEntry:
    """Graphs and weights that fine-tune one engine.

    Attributes:
        optimizer: Baked into the graphs.
        settings: Its numbers, for people.
        state: Names of the states that each trained tensor has.
        graphs: Scope -> graph of one step.
        features: Scope -> graph from the network's input to the features that the step's graph
            takes instead; scopes without a frozen trunk have none.
        tensors: Every weight of the network.
    """

    optimizer: FinetuneOptimizer
    settings: Mapping[str, Any]
    state: tuple[str, ...]
    graphs: Mapping[FinetuneScope, FileDigest]
    features: Mapping[FinetuneScope, FileDigest]
    tensors: tuple[WeightTensor, ...]

    def __post_init__(self) -> None:
        if "all" not in self.graphs:
            raise ManifestFieldError("graphs.all", "is missing: every weight can be trained")
        for scope in self.features:
            if scope not in self.graphs:
                raise ManifestFieldError(
                    f"graphs.{scope}", f"is missing: features.{scope} needs its graph"
                )
        if twice := repeated(tensor.name for tensor in self.tensors):
            raise ManifestFieldError("tensors", f"has the weight {twice[0][:80]!r} twice")

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """All its graphs."""
        return (*self.graphs.values(), *self.features.values())

    def scope_files(self, scope: FinetuneScope) -> tuple[FileDigest, ...]:
        """Return the graphs of one scope."""
        features = self.features.get(scope)
        return (self.graphs[scope],) if features is None else (self.graphs[scope], features)

    def trained(self, scope: FinetuneScope) -> tuple[WeightTensor, ...]:
        """Return the weights that a scope trains."""
        return tuple(tensor for tensor in self.tensors if scope in tensor.scopes)


@dataclass(frozen=True)
class QuantizedEntry:
    """Quantised layers of one engine, and the comparison with float32 that it passed.

    Attributes:
        operators: Convolutions that compute with int8 weights and uint8 activations ...
        total_operators: ... out of how many.
        float_layers: Nodes of the convolutions that stay in float32.
        compared_on: Data of the comparison, for people.
        j_drop_points: J of the float32 engines minus J of the quantised ones, times 100.
        mask_iou: Mean IoU of the masks of both.
    """

    operators: int
    total_operators: int
    float_layers: tuple[str, ...]
    compared_on: str
    j_drop_points: float
    mask_iou: float

    def __post_init__(self) -> None:
        if self.operators < 1 or self.operators + len(self.float_layers) != self.total_operators:
            raise ManifestFieldError(
                "operators",
                f"must be at least 1, and {self.total_operators} together with the "
                f"{len(self.float_layers)} float_layers, got {self.operators}",
            )


@dataclass(frozen=True)
class RoleEntry:
    """One engine of the directory.

    Attributes:
        onnx: Graph file, relative to the directory.
        sha256: Its digest.
        external_data: Weight files of the graph, with digests.
        opset: ONNX opset of the graph.
        precision: ``"fp16"`` if weights inside are half, ``"int8"`` if it is quantised; the edges
            are float32 either way.
        half_weights: How many convolution and matmul weight tensors are half ...
        total_weights: ... out of how many.
        inputs: In the order of the graph.
        outputs: In the order of the graph.
        size_multiple: Frame sides are resized to multiples of this (64 for flow, 16 n + 1 for a
            propagation crop is written as 16, 1 if any size works).
        variant: Network variant, for example ``"flownet2"`` or ``"deeplab-xception-os16"``.
        parameters: Number of trained values of the network.
        adapt: How it can be fine-tuned; None if it cannot.
        quantized: The quantised layers; None if it has none.
    """

    onnx: str
    sha256: str
    external_data: tuple[FileDigest, ...]
    opset: int
    precision: Precision
    half_weights: int
    total_weights: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size_multiple: int
    variant: str
    parameters: int
    adapt: FinetuneEntry | None = None
    quantized: QuantizedEntry | None = None

    def __post_init__(self) -> None:
        if not self.onnx:
            raise ManifestFieldError("onnx", "is empty")
        FileDigest(self.onnx, self.sha256)
        if self.precision not in PRECISIONS:
            raise ManifestFieldError("precision", f"is unknown: {self.precision!r}")
        for name, least in (
            ("half_weights", 0),
            ("total_weights", 0),
            ("opset", 1),
            ("size_multiple", 1),
            ("parameters", 0),
        ):
            if getattr(self, name) < least:
                raise ManifestFieldError(
                    name, f"must be at least {least}, got {getattr(self, name)}"
                )
        if self.half_weights > self.total_weights:
            raise ManifestFieldError(
                "half_weights",
                f"must be at most total_weights, {self.total_weights}, got {self.half_weights}",
            )
        # A request for fp16 that yields fp32 must never pass unnoticed, nor the reverse.
        if (self.precision == "fp16") != (self.half_weights > 0):
            raise ManifestFieldError(
                "precision",
                f"is {self.precision}, which contradicts {self.half_weights} half weights of "
                f"{self.total_weights}",
            )
        if (self.precision == "int8") != (self.quantized is not None):
            raise ManifestFieldError(
                "quantized",
                f"must be given if precision is int8, and only then; it is {self.precision}",
            )
        data = {file.path for file in self.external_data}
        for index, tensor in enumerate(() if self.adapt is None else self.adapt.tensors):
            if tensor.file not in data:
                raise ManifestFieldError(
                    f"adapt.tensors[{index}].file",
                    f"must be one of external_data, got {tensor.file[:80]!r}",
                )

    @property
    def named_files(self) -> dict[str, str]:
        """Path of each file by its field, such as ``"external_data[0].path"``."""
        named = {"onnx": self.onnx}
        for index, file in enumerate(self.external_data):
            named[f"external_data[{index}].path"] = file.path
        if self.adapt is not None:
            for kind, files in (("graphs", self.adapt.graphs), ("features", self.adapt.features)):
                for scope, file in files.items():
                    named[f"adapt.{kind}.{scope}.path"] = file.path
        return named

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """The files that inference needs: the graph and its external data."""
        return (FileDigest(self.onnx, self.sha256), *self.external_data)

    @property
    def all_files(self) -> tuple[FileDigest, ...]:
        """The files that inference and fine-tuning need."""
        return self.files if self.adapt is None else (*self.files, *self.adapt.files)

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, without optional parts that are None."""
        value = json_from_record(self)
        for name in ("adapt", "quantized"):
            if value[name] is None:
                del value[name]
        return value


@dataclass(frozen=True)
class Provenance:
    """The origin of the engines.

    Attributes:
        checkpoints: File names and digests of the checkpoints.
        tool_version: Version of mpn-runtime that exported.
        command: Command line that exported.
        licence: Licence of the weights, for example ``"CC-BY-NC-4.0"``.
        created: UTC time as ISO 8601, see :func:`utc_now_iso`.
    """

    checkpoints: tuple[FileDigest, ...]
    tool_version: str
    command: str
    licence: str
    created: str

    def __post_init__(self) -> None:
        try:
            created = datetime.fromisoformat(self.created)
        except ValueError:
            created = None
        if created is None or created.utcoffset() != timedelta(0):
            raise ManifestFieldError(
                "created", f"must be a UTC time as ISO 8601, got {self.created!r}"
            )


def utc_now_iso() -> str:
    """Return the UTC time as ISO 8601, such as ``2026-03-01T12:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")

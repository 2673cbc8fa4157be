"""Count the half-precision layers of a plan, and declare half-precision inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpn.errors import EngineError

_ARITHMETIC = ("conv", "gemm", "matmul", "matrix", "einsum", "fullyconnected")
"""In the names of layers that multiply by weights, whatever version names them."""
_NOT_LAYERS = ("reformat", "noop", "constant", "signal", "wait", "shapehosttodevice", "memcpy")
"""Layers that only move or order data."""


@dataclass(frozen=True)
class LayerCount:
    """Number of layers, and of layers in half precision.

    Attributes:
        layers: Layers with floating-point values of a known type.
        half_layers: Those with half-precision values.
        arithmetic: Convolutions and matrix products among ``layers``.
        half_arithmetic: Those with half-precision values.
        unknown: Layers without a reported type, such as a fused part of the graph.
    """

    layers: int
    half_layers: int
    arithmetic: int
    half_arithmetic: int
    unknown: int = 0

    @property
    def half_share(self) -> float:
        """Share of half-precision layers, 0 to 1; 0 without layers."""
        return self.half_layers / self.layers if self.layers else 0.0


@dataclass(frozen=True)
class PlanPrecision:
    """Layers of a plan by precision.

    Attributes:
        network: Counts in the builder's network, whose types are binding.
        engine: Counts in the built engine; None if it could not be inspected.
        engine_note: Reason for that; empty if it was inspected.
    """

    network: LayerCount
    engine: LayerCount | None
    engine_note: str = ""

    def check(self, precision: str, title: str) -> None:
        """Check that a plan of an fp16 graph computes in half precision.

        Args:
            precision: ``"fp32"`` or ``"fp16"``, the precision of the graph.
            title: Name of the plan, for the message.

        Raises:
            EngineError: If it is ``"fp16"``, and no convolution or matrix product of the network,
                or of the engine's layers of known type, is half.
        """
        if precision != "fp16":
            return
        for where, count in (("network", self.network), ("engine", self.engine)):
            if count is not None and count.arithmetic and not count.half_arithmetic:
                raise EngineError(
                    f"{title} should be fp16, but all {count.arithmetic} convolutions and "
                    f"matrix products of the {where} are float32: export it again with "
                    "--precision fp16"
                )

    def describe(self) -> str:
        """Return a line such as ``134 of 142 convolutions in half precision``."""
        count = self.network if self.engine is None else self.engine
        if not count.arithmetic:
            count = self.network
        return (
            f"{count.half_arithmetic} of {count.arithmetic} convolutions and products in half "
            "precision"
        )


def layer_count_from_inspector(text: str) -> LayerCount:
    """Count the layers in an EngineInspector's JSON.

    It reads ``Layers``, each with ``LayerType`` and ``Inputs``/``Outputs``. Their type is in
    ``Format/Datatype`` (TensorRT 10) or in ``DataType`` and ``Format`` (from 11 on). A layer with
    one half-precision value counts as half, because a convolution and the cast of its result are
    fused into one layer.

    Raises:
        EngineError: If the JSON has another form.
    """
    try:
        layers = json.loads(text)["Layers"]
        if not isinstance(layers, list):
            raise TypeError("Layers is no list")
        known = [_classify(layer) for layer in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the layer report of the engine cannot be read ({type(error).__name__}: {error})"
        ) from error
    return count_layers(entry for entry in known if entry is not None)


def count_layers(layers: Any) -> LayerCount:
    """Count layers given as (is arithmetic, is half); None for an unknown type."""
    pairs = list(layers)
    return LayerCount(
        layers=sum(half is not None for _, half in pairs),
        half_layers=sum(half is True for _, half in pairs),
        arithmetic=sum(arithmetic and half is not None for arithmetic, half in pairs),
        half_arithmetic=sum(arithmetic and half is True for arithmetic, half in pairs),
        unknown=sum(half is None for _, half in pairs),
    )


def _classify(layer: Any) -> tuple[bool, bool | None] | None:
    """Return (is arithmetic, is half or None) of a layer; None if it only moves data."""
    if isinstance(layer, str):  # only names, if the plan was built without details
        return (_is_arithmetic(layer), None)
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    if any(word in kind.replace(" ", "") for word in _NOT_LAYERS):
        return None
    types = {
        type_name
        for side in ("Inputs", "Outputs")
        for tensor in layer.get(side) or ()
        if (type_name := _type_of(tensor)) is not None
    }
    arithmetic = _is_arithmetic(kind)
    if "half" in types:
        return (arithmetic, True)
    return (arithmetic, False if "float" in types else None)


def _is_arithmetic(kind: str) -> bool:
    text = kind.lower().replace("_", "").replace(" ", "")
    return any(word in text for word in _ARITHMETIC)


def _type_of(tensor: Any) -> str | None:
    if not isinstance(tensor, Mapping):
        return None
    words: Sequence[str] = [
        str(tensor[key]).lower()
        for key in ("DataType", "Format/Datatype", "Format")
        if key in tensor
    ]
    text = " ".join(words)
    if "half" in text or "fp16" in text:
        return "half"
    return "float" if "float" in text or "fp32" in text else None


_FLOAT, _FLOAT16 = 1, 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _GRAPH_INPUT = 7, 11
_NAME, _TYPE, _TENSOR_TYPE, _ELEM_TYPE = 1, 2, 1, 1

Span = tuple[int, int]


def with_half_inputs(model: bytes, names: Sequence[str]) -> bytes:
    """Declare some float32 inputs of a graph as float16.

    Args:
        model: Content of an ``.onnx`` file.
        names: The inputs.

    Raises:
        EngineError: If it is no ONNX file, or a name is not one of its float32 inputs.
    """
    changed = bytearray(model)
    wanted = set(names)
    try:
        for graph in _messages(model, (0, len(model)), _GRAPH):
            for value in _messages(model, graph, _GRAPH_INPUT):
                (name,) = _messages(model, value, _NAME)
                text = model[name[0] : name[1]].decode()
                if text in wanted:
                    offset = _elem_type_offset(model, value)
                    if model[offset] != _FLOAT:
                        raise EngineError(f"input '{text}' of the graph is not float32")
                    changed[offset] = _FLOAT16
                    wanted.remove(text)
    except (IndexError, ValueError) as error:
        raise EngineError("the graph is no ONNX file: export it again") from error
    if wanted:
        raise EngineError(f"the graph has no input {sorted(wanted)}: export it again")
    return bytes(changed)


def _elem_type_offset(data: bytes, value: Span) -> int:
    """Return the offset of the byte of an input's element type."""
    for kind in _messages(data, value, _TYPE):
        for tensor in _messages(data, kind, _TENSOR_TYPE):
            for field, wire, start, _ in _fields(data, tensor):
                if field == _ELEM_TYPE and wire == _VARINT:
                    return start
    raise ValueError("an input without an element type")


def _messages(data: bytes, span: Span, field: int) -> list[Span]:
    return [
        (start, stop)
        for number, wire, start, stop in _fields(data, span)
        if number == field and wire == _BYTES
    ]


def _fields(data: bytes, span: Span) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, start, stop) of each field's value in a message."""
    position, end = span
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        start = position
        if wire == _VARINT:
            _, position = _varint(data, position)
        elif wire == _BYTES:
            length, start = _varint(data, position)
            position = start + length
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if position > end:
            raise ValueError("a field ends behind its message")
        yield number, wire, start, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")

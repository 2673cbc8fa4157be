"""Changing the type of a graph's inputs, in the bytes of an ONNX file.

TensorRT's own tensors have a fixed type from version 11 on, and taking an input with a dynamic size
out of a parsed network leaves it broken (TensorRT for RTX 1.7: "should have been removed from
Graph::tensors"). In the file an input's type is one byte: it is changed there, before parsing, and
this needs no onnx package.

Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.input 11, ValueInfoProto.name
1 and .type 2, TypeProto.tensor_type 1, TypeProto.Tensor.elem_type 1; FLOAT is 1 and FLOAT16 is 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mpn.errors import EngineError

_FLOAT, _FLOAT16 = 1, 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _GRAPH_INPUT = 7, 11
_NAME, _TYPE, _TENSOR_TYPE, _ELEM_TYPE = 1, 2, 1, 1

Span = tuple[int, int]


def with_half_inputs(model: bytes, names: Sequence[str]) -> bytes:
    """The same graph with some float32 inputs declared as float16.

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
                    place = _elem_type_at(model, value)
                    if model[place] != _FLOAT:
                        raise EngineError(f"input '{text}' of the graph is not float32")
                    changed[place] = _FLOAT16
                    wanted.remove(text)
    except (IndexError, ValueError) as error:
        raise EngineError("the graph is no ONNX file: export it again") from error
    if wanted:
        raise EngineError(f"the graph has no input {sorted(wanted)}: export it again")
    return bytes(changed)


def _elem_type_at(data: bytes, value: Span) -> int:
    """Where the one byte of an input's element type is."""
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
    """(number, wire type, start, stop) of each field's value in a message."""
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

"""From an ONNX file to a network the builder takes: parsing, edges, weights to exchange, layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mpn.engines.plans.graph_bytes import with_half_inputs
from mpn.engines.plans.report import LayerCount, count_layers
from mpn.engines.spec import EngineSpec, TensorSpec
from mpn.engines.trt_api import TrtApi
from mpn.errors import EngineError

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
        return "; ".join(faults) or self._api.last_words()


def _name_of(kind: Any) -> str:
    """``"CONVOLUTION"`` of ``LayerType.CONVOLUTION``."""
    return str(getattr(kind, "name", kind)).rpartition(".")[2]

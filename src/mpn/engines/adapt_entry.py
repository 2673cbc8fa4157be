"""What a manifest says about fine-tuning one engine: graphs of the step, and where weights lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mpn.engines.fields import Fields
from mpn.engines.files import FileDigest
from mpn.errors import ManifestError

AdaptScope = Literal["all", "head"]
"""``all``: every weight is trained; ``head``: those behind a frozen trunk, on its features."""
ADAPT_SCOPES: tuple[AdaptScope, ...] = get_args(AdaptScope)

AdaptOptimizer = Literal["sgd", "adamw"]
ADAPT_OPTIMIZERS: tuple[AdaptOptimizer, ...] = get_args(AdaptOptimizer)

StoredDtype = Literal["float32", "float16"]
STORED_DTYPES: tuple[StoredDtype, ...] = get_args(StoredDtype)
_BYTES: Mapping[StoredDtype, int] = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class WeightTensor:
    """One weight of an inference graph, as bytes of its external data.

    Attributes:
        name: Of the initialiser in ``<role>.onnx`` and of the input in the adaptation graphs.
        shape: Sizes, row-major.
        file: The external data, relative to the directory.
        offset: First byte.
        nbytes: Number of bytes, little endian.
        dtype: As it is stored.
        scale: Stored value over the value that is trained: the trunk of a half-precision OSVOS is
            rescaled, so that its activations fit.
        scopes: Where it is trained; empty for one that never is.
    """

    name: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    dtype: StoredDtype
    scale: float
    scopes: tuple[AdaptScope, ...]

    def __post_init__(self) -> None:
        where = f"weight '{self.name}'"
        if self.dtype not in STORED_DTYPES:
            raise ManifestError(f"{where}: unknown dtype {self.dtype!r}")
        if min(self.shape, default=1) < 1 or self.offset < 0:
            raise ManifestError(f"{where}: impossible shape {self.shape} or offset {self.offset}")
        expected = math.prod(self.shape) * _BYTES[self.dtype]
        if self.nbytes != expected:
            raise ManifestError(
                f"{where}: {self.nbytes} bytes, but {self.dtype} {self.shape} has {expected}"
            )
        if not self.scale > 0:
            raise ManifestError(f"{where}: scale must be over 0, got {self.scale}")

    def as_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "file": self.file,
            "offset": self.offset,
            "nbytes": self.nbytes,
            "dtype": self.dtype,
            "scale": self.scale,
            "scopes": list(self.scopes),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> WeightTensor:
        """The inverse of :meth:`as_json`."""
        name, shape = fields.string("name"), fields.shape("shape")
        sizes = tuple(size for size in shape if isinstance(size, int))
        if len(sizes) != len(shape):
            raise ManifestError(f"weight '{name}': its shape {shape} must be fixed")
        return cls(
            name=name,
            shape=sizes,
            file=fields.string("file"),
            offset=fields.integer("offset"),
            nbytes=fields.integer("nbytes"),
            dtype=fields.choice("dtype", STORED_DTYPES),
            scale=fields.number("scale"),
            scopes=fields.choices("scopes", ADAPT_SCOPES),
        )


@dataclass(frozen=True)
class AdaptEntry:
    """How one engine can be fine-tuned.

    Attributes:
        optimizer: Baked into the graphs.
        settings: Its numbers, for people.
        state: Names of the states that each trained tensor has.
        graphs: Scope -> graph of one step.
        features: Scope -> graph from the network's input to what the step's graph takes in its
            place; scopes without a frozen trunk have none.
        tensors: Every weight of the network.
    """

    optimizer: AdaptOptimizer
    settings: Mapping[str, Any]
    state: tuple[str, ...]
    graphs: Mapping[AdaptScope, FileDigest]
    features: Mapping[AdaptScope, FileDigest]
    tensors: tuple[WeightTensor, ...]

    def __post_init__(self) -> None:
        if "all" not in self.graphs:
            raise ManifestError("field 'adapt.graphs.all' is missing: every weight can be trained")
        if not set(self.features) <= set(self.graphs):
            raise ManifestError("field 'adapt.features' names a scope that has no graph")
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ManifestError("field 'adapt.tensors' names a weight twice")

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """All its graphs."""
        return (*self.graphs.values(), *self.features.values())

    def scope_files(self, scope: AdaptScope) -> tuple[FileDigest, ...]:
        """The graphs of one scope."""
        features = self.features.get(scope)
        return (self.graphs[scope],) if features is None else (self.graphs[scope], features)

    def trained(self, scope: AdaptScope) -> tuple[WeightTensor, ...]:
        """The weights that a scope trains."""
        return tuple(tensor for tensor in self.tensors if scope in tensor.scopes)

    def as_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return {
            "optimizer": self.optimizer,
            "settings": dict(self.settings),
            "state": list(self.state),
            "graphs": {scope: file.as_json() for scope, file in self.graphs.items()},
            "features": {scope: file.as_json() for scope, file in self.features.items()},
            "tensors": [tensor.as_json() for tensor in self.tensors],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> AdaptEntry:
        """The inverse of :meth:`as_json`."""
        return cls(
            optimizer=fields.choice("optimizer", ADAPT_OPTIMIZERS),
            settings=fields.object("settings").raw(),
            state=fields.strings("state"),
            graphs=_files_by_scope(fields.object("graphs")),
            features=_files_by_scope(fields.object("features")),
            tensors=tuple(WeightTensor.from_fields(item) for item in fields.objects("tensors")),
        )


def _files_by_scope(fields: Fields) -> dict[AdaptScope, FileDigest]:
    found = {
        scope: FileDigest.from_fields(fields.object(scope))
        for scope in ADAPT_SCOPES
        if scope in fields
    }
    unknown = [name for name in fields.names if name not in ADAPT_SCOPES]
    if unknown:
        raise ManifestError(
            f"unknown scope '{unknown[0]}' of adaptation: the scopes are {', '.join(ADAPT_SCOPES)}"
        )
    return found

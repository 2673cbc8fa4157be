"""Fake engines that run Python functions, for tests of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from mpn._common.closeable import Closeable
from mpn.engines.directory.manifest import (
    FlowSource,
    Manifest,
    Preprocessing,
    Provenance,
    RoleEntry,
)
from mpn.engines.open import EngineSet
from mpn.engines.spec import (
    OPSET,
    EngineSpec,
    Role,
    engine_spec,
    features_spec,
    propagation_spec,
)
from mpn.errors import EngineError
from mpn.types import Float32Array, UInt8Array

Function = Callable[[Mapping[str, Float32Array]], Mapping[str, Any]]


class FakeEngine(Closeable):
    """Engine whose network is a Python function.

    Inputs are checked by the spec as in a real engine; outputs are checked too.

    Args:
        spec: Inputs and outputs of the network.
        function: Inputs by name -> outputs by name, castable to float32.
        backend: Value of the property.

    Attributes:
        calls: Copies of the inputs of each run, in order.
        is_closed: Whether it was closed.
    """

    def __init__(self, spec: EngineSpec, function: Function, *, backend: str = "cpu") -> None:
        self._spec = spec
        self._function = function
        self._backend = backend
        self.calls: list[dict[str, Float32Array]] = []
        self.is_closed = False

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def backend(self) -> str:
        return self._backend

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        if self.is_closed:
            raise EngineError(f"the {self._spec.role} engine is closed")
        self._spec.check_inputs(inputs)
        for name, array in inputs.items():
            if array.size == 0:
                raise EngineError(f"tensor '{name}' is empty {array.shape}")
        self.calls.append({name: array.copy() for name, array in inputs.items()})
        outputs = {
            name: np.array(array, np.float32) for name, array in self._function(inputs).items()
        }
        for tensor in self._spec.outputs:
            tensor.check(outputs[tensor.name])
        return outputs

    def close(self) -> None:
        self.is_closed = True


def fourth_channel(inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Run a propagation network that returns its input probability."""
    return {"prob": inputs["rgb_prob"][:, 3:4]}


def pooled_colours(inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Run a features network that returns the colours around each grid point."""
    (image,) = inputs["image"]
    planes = [cv2.blur(np.ascontiguousarray(plane), (8, 8))[::8, ::8] for plane in image]
    return {"features": np.stack(planes)[None] / 255}


def nothing_found(inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Run an OSVOS network that finds no object."""
    return {"prob": np.zeros_like(inputs["image"][:, :1])}


class FakeFinetuner(Closeable):
    """Adapter that returns fake engines instead of fine-tuned ones.

    Args:
        engine_set: Provides the specs of the engines.
        functions: Role -> object id -> network of this object; None: the common network.
        fails_for: Id of an object for which fine-tuning fails.

    Attributes:
        calls: Arguments of each call, in order.
        engines: Engines that were returned, in order.
        is_closed: Whether it was closed.
    """

    def __init__(
        self,
        engine_set: EngineSet,
        functions: Mapping[Role, Callable[[int], Function | None]],
        *,
        fails_for: int | None = None,
    ) -> None:
        self._engine_set = engine_set
        self._functions = functions
        self.fails_for = fails_for
        self.calls: list[tuple[UInt8Array, UInt8Array, int]] = []
        self.engines: list[FakeEngine] = []
        self.is_closed = False

    def finetune(
        self, rgb: UInt8Array, labels: UInt8Array, object_id: int
    ) -> dict[Role, FakeEngine]:
        assert rgb.shape[:2] == labels.shape
        self.calls.append((rgb, labels.copy(), object_id))
        if object_id == self.fails_for:
            raise EngineError(f"object {object_id} cannot be fine-tuned")
        own: dict[Role, FakeEngine] = {}
        for role, function_of in self._functions.items():
            function = function_of(object_id)
            if function is not None:
                own[role] = FakeEngine(self._engine_set.engines[role].spec, function)
        self.engines += own.values()
        return own

    def report_as_json(self) -> list[dict[str, Any]]:
        return [{"object_id": object_id} for _, _, object_id in self.calls]

    def close(self) -> None:
        self.is_closed = True


def fake_engine_set(
    *,
    propagation: Function = fourth_channel,
    osvos: Function | None = None,
    flow: Function | None = None,
    features: Function | None = None,
    takes_score: bool = False,
    frame_size_hw: tuple[int, int] = (64, 96),
    roi_size: int = 65,
    max_objects: int = 4,
    flow_source: FlowSource | None = None,
    preprocessing: Preprocessing | None = None,
    runtime_defaults: Mapping[str, Any] | None = None,
) -> EngineSet:
    """Build an EngineSet of fake engines with a matching manifest.

    Without ``flow`` the source is OpenCV DIS; ``flow_source`` sets its preset and scale.
    ``features`` returns (1, 3, 9, 13) for images of 65x97. ``takes_score`` adds the fifth channel
    to the input of the propagation network.
    """
    functions: dict[Role, Function] = {"propagation": propagation}
    if flow is not None:
        functions["flow"] = flow
    if osvos is not None:
        functions["osvos"] = osvos
    engines = {
        role: FakeEngine(
            engine_spec(
                role, frame_size_hw=frame_size_hw, roi_size=roi_size, max_objects=max_objects
            ),
            function,
        )
        for role, function in functions.items()
    }
    if takes_score:
        engines["propagation"] = FakeEngine(
            propagation_spec(roi_size, max_objects, channels=5), propagation
        )
    if features is not None:
        engines["features"] = FakeEngine(features_spec((65, 97), 3), features)
    if flow_source is None:
        flow_source = FlowSource("opencv-dis" if flow is None else "engine")
    manifest = Manifest(
        name="fake",
        frame_size_hw=frame_size_hw,
        roi_size=roi_size,
        max_objects=max_objects,
        preprocessing=preprocessing or Preprocessing(),
        flow=flow_source,
        roles={role: fake_role_entry(engine.spec) for role, engine in engines.items()},
        runtime_defaults=dict(runtime_defaults or {}),
        provenance=Provenance((), "0.1.0", "tests", "CC0-1.0", "2026-01-01T00:00:00+00:00"),
    )
    return EngineSet(
        manifest=manifest,
        propagation=engines["propagation"],
        flow=engines.get("flow"),
        osvos=engines.get("osvos"),
        backend="cpu",
        backend_note="cpu, because the engines are fake",
        features=engines.get("features"),
        digests={entry.onnx: entry.sha256 for entry in manifest.roles.values()},
    )


def fake_role_entry(spec: EngineSpec) -> RoleEntry:
    """Build the manifest entry of an engine that has no file."""
    return RoleEntry(
        onnx=f"{spec.role}.onnx",
        sha256="0" * 64,
        external_data=(),
        opset=OPSET,
        precision="fp32",
        half_weights=0,
        total_weights=1,
        inputs=spec.inputs,
        outputs=spec.outputs,
        size_multiple=1,
        variant="fake",
        parameters=0,
    )

"""Write tiny engine directories whose propagation network can be fine-tuned.

``prob`` is a weighted sum of the four input channels. The step is gradient descent with momentum on
the squared error. Training takes milliseconds; the masks are not accurate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mpn._common.files import sha256_of_file
from mpn.engines.directory.entries import FinetuneEntry, WeightTensor
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import load_manifest, save_manifest
from mpn.engines.spec import OPSET
from tests.builders.engine_dirs import IR_VERSION, make_engine_dir

ADAPT_NAME = "propagation_adapt.onnx"
_WEIGHT_SHAPE = (1, 4, 1, 1)


def make_adaptable_engine_dir(path: Path, **options: Any) -> Path:
    """Write an engine directory with a step for the propagation network.

    See :func:`tests.builders.engine_dirs.make_engine_dir`.
    """
    make_engine_dir(path, external_data=True, **options)
    onnx.save_model(_step(), path / ADAPT_NAME)
    manifest = load_manifest(path)
    data = manifest.roles["propagation"].external_data[0].path
    entry = FinetuneEntry(
        optimizer="sgd",
        settings={"momentum": 0.9},
        state=("momentum",),
        graphs={"all": FileDigest(ADAPT_NAME, sha256_of_file(path / ADAPT_NAME))},
        features={},
        tensors=(WeightTensor("weight", _WEIGHT_SHAPE, data, 0, 16, "float32", 1.0, ("all",)),),
    )
    role = replace(manifest.roles["propagation"], adapt=entry)
    save_manifest(path, replace(manifest, roles={**manifest.roles, "propagation": role}))
    return path


def _step() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["rgb_prob", "weight"], ["prob"]),
        helper.make_node("Sub", ["prob", "target"], ["error"]),
        helper.make_node("Mul", ["error", "error"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["loss"], keepdims=0),
        helper.make_node("Mul", ["error", "rgb_prob"], ["products"]),
        helper.make_node("ReduceMean", ["products", "axes"], ["gradient"], keepdims=1),
        helper.make_node("Mul", ["weight::momentum", "decay"], ["kept"]),
        helper.make_node("Add", ["kept", "gradient"], ["weight::momentum::next"]),
        helper.make_node("Mul", ["weight::momentum::next", "learning_rate"], ["change"]),
        helper.make_node("Sub", ["weight", "change"], ["weight::next"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([0, 2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array(0.9, np.float32), "decay"),
    ]

    def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    carried = ("weight", "weight::momentum")
    graph = helper.make_graph(
        nodes,
        "propagation_adapt",
        [
            value("rgb_prob", ["n", 4, "h", "w"]),
            value("target", ["n", 1, "h", "w"]),
            value("learning_rate", []),
            *(value(name, list(_WEIGHT_SHAPE)) for name in carried),
        ],
        [value("loss", []), *(value(f"{name}::next", list(_WEIGHT_SHAPE)) for name in carried)],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model

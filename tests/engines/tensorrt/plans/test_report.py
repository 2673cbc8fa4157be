from __future__ import annotations

import json
from typing import Any

import pytest

from mpn._common.records import json_from_record, record_from_json
from mpn.engines.tensorrt.plans.report import LayerCount, PlanPrecision, layer_count_from_inspector
from mpn.errors import EngineError


def layer(kind: str, source: Any, target: Any) -> dict[str, Any]:
    return {"Name": "n", "LayerType": kind, "Inputs": [source], "Outputs": [target]}


def old(text: str) -> dict[str, Any]:
    return {"Name": "t", "Dimensions": [1], "Format/Datatype": text}


def new(dtype: str) -> dict[str, Any]:
    return {"Name": "t", "Format": "Channel major FP32 format", "DataType": dtype}


HALF_10 = old("Row major linear FP16 format (kLINEAR)")
FLOAT_10 = old("Thirty-two wide channel vectorized row major FP32 format")
HALF_11 = {"Name": "t", "DataType": "Half", "Format": "Row major linear"}
FLOAT_11 = {"Name": "t", "DataType": "Float", "Format": "Row major linear"}


@pytest.mark.parametrize(("half", "float_"), [(HALF_10, FLOAT_10), (HALF_11, FLOAT_11)])
def test_layers_are_counted_in_the_words_of_both_versions(half: Any, float_: Any) -> None:
    text = json.dumps(
        {
            "Layers": [
                layer("CaskConvolution", half, half),
                layer("CaskGemmConvolution", half, float_),
                layer("CaskConvolution", float_, float_),
                layer("PointWiseV2", half, half),
                layer("Reformat", float_, half),
                layer("NoOp", half, half),
                {"Name": "myelin", "LayerType": "ForeignNode", "Inputs": [], "Outputs": []},
            ],
            "Bindings": ["image", "prob"],
        }
    )
    count = layer_count_from_inspector(text)
    assert count == LayerCount(layers=4, half_layers=3, arithmetic=3, half_arithmetic=2, unknown=1)
    assert count.half_share == pytest.approx(0.75)


def test_layer_names_give_no_types() -> None:
    count = layer_count_from_inspector(json.dumps({"Layers": ["conv1 + relu", "pool"]}))
    assert count == LayerCount(0, 0, 0, 0, unknown=2)
    assert count.half_share == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [3]}'])
def test_another_text_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="layer report of the engine cannot be read"):
        layer_count_from_inspector(text)


FLOAT = LayerCount(10, 0, 4, 0)
HALF = LayerCount(10, 8, 4, 3)
UNTOLD = LayerCount(0, 0, 0, 0, unknown=5)


@pytest.mark.parametrize(
    ("network", "engine", "says"),
    [(FLOAT, None, "4 convolutions .* of the network"), (HALF, FLOAT, "of the engine are float32")],
)
def test_half_requested_but_not_used_raises(
    network: LayerCount, engine: LayerCount | None, says: str
) -> None:
    result = PlanPrecision(network, engine)
    with pytest.raises(EngineError, match=says):
        result.check("fp16", "the flow plan")
    result.check("fp32", "the flow plan")  # an engine that was not requested is no error


@pytest.mark.parametrize("engine", [None, HALF, UNTOLD])
def test_half_requested_and_used_passes(engine: LayerCount | None) -> None:
    result = PlanPrecision(HALF, engine, "why")
    result.check("fp16", "the flow plan")
    assert result.describe() == "3 of 4 convolutions and products in half precision"
    assert record_from_json(json_from_record(result), PlanPrecision, EngineError) == result

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.networks import add_scores, configs, measure
from mpn.networks.propagation import PropagationConfig
from tests.benchmarks.results import davis_result


def test_counts_are_those_of_the_layers() -> None:
    small = PropagationConfig(backbone="vgg16", head="deeplab-v2", width=0.125, in_channels=5)
    row = measure(small, "", 64)
    # Four classifiers of 3x3 from 64 channels to 2, on a map of 4x4.
    assert row["parameters"] - row["backbone_parameters"] == 4 * (9 * 64 * 2 + 2)
    assert row["macs"] - row["backbone_macs"] == 4 * 9 * 64 * 2 * 16
    assert row["trained"] is None


def test_recipes_and_all_combinations_are_in_the_table() -> None:
    found = configs()
    assert found[PropagationConfig()] == "paper"
    assert "lite, tune" in found.values()
    assert "target" in found.values()
    assert len(found) == 20


def test_scores_go_to_the_measured_network(tmp_path: Path) -> None:
    result = davis_result()
    facts = {"precision": "fp32", "variant": "deeplab-xception-os16", "parameters": 7}
    result["engine"]["roles"]["propagation"] = facts
    (tmp_path / "davis.json").write_text(json.dumps(result))
    rows = [{**facts, "trained": None}, {**facts, "parameters": 8, "trained": None}]
    add_scores(rows, [tmp_path / "davis.json"])
    j = result["ablations"]["propagation"]["J-Mean"]
    assert rows[0]["trained"] == {"j": j, "set": result["data"]["set"], "result": "davis"}
    assert rows[1]["trained"] is None

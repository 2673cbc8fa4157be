from __future__ import annotations

import json
import socket

import numpy as np
import pytest

from mpn import __version__
from mpn.runtime.session.report import StageStatistics, machine_facts, sha256_of_array, versions


def test_statistics_by_stage() -> None:
    statistics = StageStatistics()
    for value in range(1, 101):
        statistics.add({"flow": value / 100})
    statistics.add({"osvos": 0.5})
    summary = statistics.as_json()
    assert summary["flow"] == {
        "frames": 100, "min_s": 0.01, "median_s": pytest.approx(0.505),
        "p95_s": pytest.approx(0.9505),
    }  # fmt: skip
    assert summary["osvos"]["frames"] == 1


def test_statistics_stay_bounded_but_count_everything() -> None:
    statistics = StageStatistics()
    statistics.add({"flow": 0.001})
    for _ in range(25_000):
        statistics.add({"flow": 1.0})
    summary = statistics.as_json()["flow"]
    assert summary == {"frames": 25_001, "min_s": 0.001, "median_s": 1.0, "p95_s": 1.0}


def test_machine_facts_are_json_and_name_neither_host_nor_user() -> None:
    text = json.dumps(machine_facts())
    assert json.loads(text)["cores"] >= 1
    assert socket.gethostname() not in text


def test_versions_of_used_packages_are_listed() -> None:
    found = versions()
    assert found["mpn-runtime"] == __version__
    assert {"python", "numpy", "av"} <= found.keys()


def test_digest_depends_on_content_and_shape() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert sha256_of_array(array) == sha256_of_array(array.copy())
    assert sha256_of_array(array) != sha256_of_array(array.reshape(3, 2))
    assert sha256_of_array(array) != sha256_of_array(array + np.uint8(1))

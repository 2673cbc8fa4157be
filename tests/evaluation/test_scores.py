import json
import math
from pathlib import Path

import numpy as np
import pytest

from mpn.errors import EvaluationError
from mpn.evaluation.scores import statistics_from_values
from tests.tolerances import MEASURE_ABSOLUTE


def test_golden_vectors(golden: Path) -> None:
    cases = json.loads((golden / "statistics_cases.json").read_text())
    assert cases
    for case in cases:
        values = [math.nan if value is None else value for value in case["values"]]
        statistics = statistics_from_values(values)
        for name in ("mean", "recall", "decay"):
            assert getattr(statistics, name) == pytest.approx(case[name], abs=MEASURE_ABSOLUTE)


def test_recall_is_strict() -> None:
    assert statistics_from_values([0.5, 0.5, 0.500001, 0.4]).recall == 0.25


@pytest.mark.parametrize("length", [255, 256, 257, 300, 1000, 70_000])
def test_decay_does_not_wrap_at_any_length(length: int) -> None:
    """Expected are the means of the quarters; a uint8 index would overflow."""
    values = np.linspace(1, 0, length)
    edges = np.round(np.linspace(1, length, 5) + 1e-10).astype(int) - 1
    expected = values[: edges[1] + 1].mean() - values[edges[3] :].mean()
    decay = statistics_from_values(values.tolist()).decay
    assert decay == pytest.approx(expected, abs=MEASURE_ABSOLUTE)
    assert decay == pytest.approx(0.75, abs=0.01)  # first quarter 0.875, last 0.125

    wrapped = edges.astype(np.uint8).astype(int)  # positive control: what the wrap would give
    if length > 256:
        bins = values[wrapped[0] : wrapped[1] + 1], values[wrapped[3] : wrapped[4] + 1]
        wrong = bins[0].mean() - bins[1].mean() if all(part.size for part in bins) else math.nan
        assert not abs(wrong - decay) <= MEASURE_ABSOLUTE


def test_nan_everywhere_stays_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    statistics = statistics_from_values([math.nan, math.nan])
    assert math.isnan(statistics.mean)
    assert statistics.recall == 0
    assert not recwarn.list


def test_no_value_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="at least one value"):
        statistics_from_values([])

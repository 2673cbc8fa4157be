from __future__ import annotations

from typing import Any

import pytest

from mpn.errors import InputError
from mpn.runtime.options import DeviceOptions


def test_streams_and_graphs_are_used_by_default() -> None:
    assert DeviceOptions() == DeviceOptions(use_streams=True, use_graphs=True)


@pytest.mark.parametrize("wrong", [{"use_streams": 1}, {"use_graphs": "no"}])
def test_a_value_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be true or false"):
        DeviceOptions(**wrong)

from __future__ import annotations

import numpy as np
import pytest

from mpn.errors import EngineError
from mpn.runtime.host.merge import check_finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("object_id", "message"),
    [(None, "the OSVOS engine returned .* not finite.*export it again"),
     (3, "the OSVOS engine that was fine-tuned on object 3 .* not finite.*another seed")],
)  # fmt: skip
def test_nonfinite_value_raises_with_object_id(
    value: float, object_id: int | None, message: str
) -> None:
    prob = np.full((1, 1, 9, 7), 0.5, np.float32)
    check_finite(prob, "OSVOS", object_id)
    prob[0, 0, 8, 6] = value
    with pytest.raises(EngineError, match=message) as caught:
        check_finite(prob, "OSVOS", object_id)
    assert "\n" not in str(caught.value)

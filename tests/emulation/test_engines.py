"""Fake engines behave as real ones; the tests of the pipeline depend on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpn.engines.base import Engine
from mpn.engines.open import open_engines
from mpn.engines.spec import osvos_spec
from mpn.errors import EngineError
from tests.builders.engine_dirs import make_engine_dir
from tests.emulation.engines import FakeEngine, fake_engine_set, fourth_channel, nothing_found


def test_fake_and_real_propagation_agree(tmp_path: Path) -> None:
    rgb_prob = np.random.default_rng(0).random((3, 4, 65, 65), dtype=np.float32)
    fake = fake_engine_set().propagation.run({"rgb_prob": rgb_prob})["prob"]
    with open_engines(make_engine_dir(tmp_path), backend="cpu") as engines:
        real = engines.propagation.run({"rgb_prob": rgb_prob})["prob"]
        changed = engines.propagation.run({"rgb_prob": rgb_prob[:, ::-1]})["prob"]
    np.testing.assert_array_equal(fake, real)
    assert not np.array_equal(fake, changed)


def test_calls_are_recorded_as_copies() -> None:
    engine = FakeEngine(osvos_spec((4, 6)), nothing_found)
    image = np.ones((1, 3, 4, 6), np.float32)
    engine.run({"image": image})
    image[:] = 7.0
    engine.run({"image": image})
    assert [call["image"].max() for call in engine.calls] == [1.0, 7.0]


def test_fake_raises_the_errors_of_a_real_engine() -> None:
    engine: Engine = FakeEngine(osvos_spec((4, 6)), nothing_found)
    with pytest.raises(EngineError, match="takes"):
        engine.run({"frame": np.ones((1, 3, 4, 6), np.float32)})
    with pytest.raises(EngineError, match="must be float32"):
        engine.run({"image": np.ones((1, 3, 6, 4), np.float32)})
    with engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine.run({"image": np.ones((1, 3, 4, 6), np.float32)})


def test_fake_function_of_a_wrong_shape_is_caught() -> None:
    engine = FakeEngine(osvos_spec((4, 6)), lambda inputs: {"prob": inputs["image"]})
    with pytest.raises(EngineError, match="tensor 'prob'"):
        engine.run({"image": np.ones((1, 3, 4, 6), np.float32)})


def test_set_has_the_engines_it_was_given() -> None:
    engines = fake_engine_set(osvos=nothing_found, runtime_defaults={"crf": False})
    assert set(engines.engines) == {"propagation", "osvos"}
    assert engines.manifest.flow.source == "opencv-dis"
    assert engines.manifest.runtime_defaults == {"crf": False}
    assert fake_engine_set(flow=fourth_channel).manifest.flow.source == "engine"

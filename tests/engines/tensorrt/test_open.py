from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpn.engines.tensorrt.open import build_plans
from mpn.errors import BackendError, ManifestError
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.driver import FakeDriver, install_driver
from tests.emulation.tensorrt import install_tensorrt


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_adapt_dir(tmp_path / "engines")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install_driver(monkeypatch)


def test_every_plan_of_a_directory_is_built(
    monkeypatch: pytest.MonkeyPatch, directory: Path, driver: FakeDriver
) -> None:
    install_tensorrt(monkeypatch, "11", driver)
    plans = build_plans(directory)
    assert [(plan.record.key.role, plan.record.key.options.refittable) for plan in plans] == [
        ("propagation", False),
        ("propagation", True),
        ("osvos", False),
        ("osvos", True),
    ]
    assert not any(plan.was_built for plan in build_plans(directory, backend="tensorrt"))


def test_without_a_gpu_plans_are_built_for_rtx_alone(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    def no_gpu() -> Any:
        raise BackendError("there is no GPU")

    monkeypatch.setattr("mpn.engines.tensorrt.open.CudaDevice", no_gpu)
    install_tensorrt(monkeypatch, "rtx", None)
    plans = build_plans(directory)
    assert [plan.record.key.role for plan in plans] == ["propagation", "osvos"]
    assert {plan.record.key.backend for plan in plans} == {"tensorrt-rtx"}
    install_tensorrt(monkeypatch, "11", None)
    with pytest.raises(BackendError, match=r"(?s)on the GPU that runs it: there is no GPU"):
        build_plans(directory, backend="tensorrt")
    with pytest.raises(BackendError, match=r"no plans can be built here: .*\[rtx\]"):
        build_plans(directory)


def test_changed_graphs_are_not_built(directory: Path) -> None:
    (directory / "osvos.onnx").write_bytes(b"changed")
    with pytest.raises(ManifestError, match="changed since export"):
        build_plans(directory)

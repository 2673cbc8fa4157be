from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.engines import open as backends_module
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.open import Backend, open_engines
from mpn.errors import BackendError, EngineError, InputError, ManifestError, MissingExtraError
from tests.builders.engine_dirs import make_engine_dir
from tests.emulation.engines import FakeEngine, fake_engine_set, fourth_channel


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engines", with_flow=True, with_osvos=True)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Replace engines by recorded fakes; CUDA works, TensorRT does not."""
    engines: list[FakeEngine] = []

    def fake(path: Path, spec: Any, *, backend: str, threads: int | None) -> FakeEngine:
        engine = FakeEngine(spec, fourth_channel, backend=backend)
        engines.append(engine)
        return engine

    def fake_cuda(path: Path, spec: Any, device: Any, *, threads: int | None) -> FakeEngine:
        assert device == "a GPU"
        return fake(path, spec, backend="cuda", threads=threads)

    def no_trt(backend: str) -> None:
        raise MissingExtraError(f"{backend} is not installed")

    monkeypatch.setattr(backends_module, "OrtEngine", fake)
    monkeypatch.setattr(backends_module, "OrtCudaEngine", fake_cuda)
    monkeypatch.setattr(backends_module, "gpu_unavailable_reason", lambda: None)
    monkeypatch.setattr(backends_module, "CudaDevice", lambda: "a GPU")
    monkeypatch.setattr(backends_module, "load_trt", no_trt)
    monkeypatch.setattr(backends_module, "why_no_cuda", lambda: None)
    return engines


def test_all_engines_open_and_close(directory: Path) -> None:
    with open_engines(directory, backend="cpu", threads=1) as engines:
        assert engines.backend == "cpu"
        assert engines.backend_note == "cpu, as requested"
        assert set(engines.engines) == {"propagation", "flow", "osvos"}
        rgb_prob = np.random.default_rng(0).random((2, 4, 65, 65), dtype=np.float32)
        prob = engines.propagation.run({"rgb_prob": rgb_prob})["prob"]
        np.testing.assert_array_equal(prob, rgb_prob[:, 3:])
    with pytest.raises(EngineError, match="closed"):
        engines.propagation.run({"rgb_prob": rgb_prob})
    engines.close()


def test_osvos_can_be_left_out_and_is_then_not_verified(directory: Path) -> None:
    (directory / "osvos.onnx").write_bytes(b"changed")
    with open_engines(directory, with_osvos=False) as engines:
        assert engines.osvos is None
        assert set(engines.digests) == {"propagation.onnx", "flow.onnx"}
    with pytest.raises(ManifestError, match=r"osvos\.onnx .*has changed since export"):
        open_engines(directory)


def test_flow_by_dis_opens_no_flow_engine(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path, external_data=True)
    with open_engines(directory, backend="cpu") as engines:
        assert engines.flow is None
        assert engines.osvos is None
        assert engines.manifest.flow.source == "opencv-dis"
        assert set(engines.digests) == {"propagation.onnx", "propagation.onnx.data"}


def test_flipped_bit_is_an_error_unless_verification_is_off(directory: Path) -> None:
    file = directory / "flow.onnx"
    content = file.read_bytes()
    # A bit of the constant vector's name: onnxruntime reads the graph as well as before.
    file.write_bytes(content.replace(b"zeros", b"zeroz"))
    assert file.read_bytes() != content
    with pytest.raises(ManifestError, match=r"flow\.onnx .*has changed since export"):
        open_engines(directory)
    open_engines(directory, verify=False).close()


@pytest.mark.parametrize("verify", [True, False])
def test_missing_graph_is_named(directory: Path, verify: bool) -> None:
    (directory / "flow.onnx").unlink()
    with pytest.raises(ManifestError, match=r"flow\.onnx is missing from"):
        open_engines(directory, verify=verify)


def test_graph_of_another_role_is_refused(directory: Path) -> None:
    (directory / "osvos.onnx").write_bytes((directory / "propagation.onnx").read_bytes())
    with pytest.raises(EngineError, match=r"osvos\.onnx is not the osvos engine"):
        open_engines(directory, verify=False)


def test_failure_midway_closes_opened_engines(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Recorded(OrtEngine):
        def close(self) -> None:
            closed.append(self.spec.role)
            super().close()

    monkeypatch.setattr(backends_module, "OrtEngine", Recorded)
    (directory / "osvos.onnx").write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"osvos\.onnx cannot be loaded"):
        open_engines(directory, backend="cpu", verify=False)
    assert sorted(closed) == ["flow", "propagation"]


def test_an_unknown_backend_is_refused(directory: Path) -> None:
    with pytest.raises(BackendError, match="unknown backend 'opencl'"):
        open_engines(directory, backend="opencl")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "cuda"])
def test_gpu_backend_without_gpu_is_refused(
    directory: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> None:
        raise BackendError("CUDA device 0 cannot be used")

    monkeypatch.setattr(backends_module, "CudaDevice", no_gpu)
    monkeypatch.setattr(backends_module, "load_trt", lambda name: name)
    monkeypatch.setattr(backends_module, "why_no_cuda", lambda: None)
    with pytest.raises(BackendError, match="CUDA device 0 cannot be used"):
        open_engines(directory, backend=backend)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_library_that_is_not_installed_names_its_extra(
    directory: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, extra = {
        "tensorrt": ("tensorrt", "tensorrt"),
        "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
    }[backend]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{backend} backend needs .*\[{extra}\]"):
        open_engines(directory, backend=backend)


def test_auto_without_gpu_reports_reason_for_cpu(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_module, "gpu_unavailable_reason", lambda: "there is no driver")
    with open_engines(directory) as engines:
        assert engines.backend == "cpu"
        assert engines.backend_note == ("cpu, because no GPU can be used here: there is no driver")
        assert engines.device is None
        assert engines.plans is None


def test_auto_backend_failure_lists_every_reason(
    directory: Path, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_module, "why_no_cuda", lambda: "there is no provider")
    engines = open_engines(directory)
    assert engines.backend == "cpu"
    note = engines.backend_note
    assert note.startswith("cpu, because tensorrt does not work here: tensorrt is not installed")
    assert "tensorrt-rtx is not installed" in note
    assert "there is no provider" in note


def test_auto_takes_cuda_after_a_run_has_proved_it(
    directory: Path, opened: list[FakeEngine]
) -> None:
    engines = open_engines(directory)
    assert engines.backend == "cuda"
    assert engines.backend_note.startswith("cuda, because it works here (tensorrt does not work")
    assert engines.device == "a GPU"  # type: ignore[comparison-overlap]
    assert [engine.backend for engine in opened] == ["cuda"] * 3
    assert len(opened[0].calls) == 1
    assert not any(engine.is_closed for engine in opened)


def test_auto_takes_the_cpu_when_the_first_cuda_run_fails(
    directory: Path, opened: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernel(self: FakeEngine, inputs: Any) -> Any:
        raise EngineError("no kernel image is available")

    monkeypatch.setattr(FakeEngine, "run", no_kernel)
    engines = open_engines(directory)
    assert engines.backend == "cpu"
    assert "no kernel image is available" in engines.backend_note
    assert [engine.backend for engine in opened] == ["cuda"] * 3 + ["cpu"] * 3
    assert [engine.is_closed for engine in opened] == [True] * 3 + [False] * 3


def test_explicit_cuda_never_becomes_the_cpu(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, threads: int | None) -> None:
        raise BackendError("cuda does not work")

    monkeypatch.setattr(backends_module, "CudaDevice", lambda: "a GPU")
    monkeypatch.setattr(backends_module, "why_no_cuda", lambda: None)
    monkeypatch.setattr(backends_module, "OrtCudaEngine", refuse)
    with pytest.raises(BackendError, match="cuda does not work"):
        open_engines(directory, backend="cuda")


def test_missing_onnxruntime_names_the_extra_for_the_cpu(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"\[cpu\]"):
        open_engines(directory)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_out_of_range_are_refused(directory: Path, threads: int) -> None:
    with pytest.raises(
        InputError, match=rf"option threads must be .* of at least 1, got {threads}"
    ):
        open_engines(directory, backend="cpu", threads=threads)


def test_video_instead_of_a_directory_gets_a_kind_error(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"video")
    with pytest.raises(ManifestError, match="is a video, not an engine directory"):
        open_engines(tmp_path / "clip.mp4")


def test_closing_a_set_closes_all_even_if_one_fails() -> None:
    engines = fake_engine_set(osvos=fourth_channel, flow=fourth_channel)

    class Stubborn(FakeEngine):
        def close(self) -> None:
            super().close()
            raise RuntimeError("stubborn")

    object.__setattr__(engines, "flow", Stubborn(engines.propagation.spec, fourth_channel))
    with pytest.raises(RuntimeError, match="stubborn"):
        engines.close()
    assert all(engine.is_closed for engine in engines.engines.values())  # type: ignore[attr-defined]

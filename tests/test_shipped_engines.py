"""Engine directory of mpn-weights-lite: complete, small, licensed, accurate."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from mpn import Pipeline, PipelineOptions
from mpn.engines.directory.manifest import load_manifest, verify_digests
from mpn.engines.open import (
    GPU_BACKENDS,
    GpuBackend,
    default_engine_dir,
    open_engines,
    shipped_engine_dir,
)
from mpn.errors import BackendError
from mpn.evaluation import SequenceEvaluator
from mpn.synthetic import SyntheticFrame, render_clip
from tests.conftest import REPOSITORY

SIZE_LIMIT_BYTES = 20_000_000
FRAMES = 10


@pytest.fixture(scope="module")
def clip() -> list[SyntheticFrame]:
    return list(render_clip(frames=FRAMES))


def _mean_j(clip: list[SyntheticFrame], engine_dir: str | None = None, **options: object) -> float:
    evaluator = SequenceEvaluator("demo")
    with Pipeline.from_engines(
        engine_dir, backend="cpu", threads=2, options=PipelineOptions().with_values(options)
    ) as pipeline:
        for result, frame in zip(_results(pipeline, clip), clip, strict=True):
            evaluator.feed(frame.labels, result)
    return float(np.mean([k.region.mean for k in evaluator.conclude().objects]))


def _results(pipeline: Pipeline, clip: list[SyntheticFrame]) -> Iterator[np.ndarray]:
    yield pipeline.start(clip[0].rgb, clip[0].labels).labels
    for frame in clip[1:]:
        yield pipeline.step(frame.rgb).labels


def test_the_directory_is_whole_and_opens() -> None:
    """All three models that a run can choose are there."""
    directory = default_engine_dir()
    manifest = load_manifest(directory)
    verify_digests(directory, manifest)
    with open_engines(directory, backend="cpu", threads=1) as engines:
        assert engines.flow is None
        assert sorted(engines.engines) == ["features", "osvos", "propagation"]
        assert manifest.flow.source == "opencv-dis"


def test_int8_directory_is_whole_and_was_made_of_the_other() -> None:
    directory, made_of = shipped_engine_dir("lite-int8"), default_engine_dir()
    manifest = load_manifest(directory)
    verify_digests(directory, manifest)
    assert manifest.provenance.licence == "CC BY-NC 4.0"
    assert manifest.runtime_defaults == load_manifest(made_of).runtime_defaults
    for role in ("propagation", "features"):
        entry = manifest.roles[role]  # type: ignore[index]
        assert entry.precision == "int8"
        assert entry.quantized is not None
        assert entry.quantized.mask_iou >= 0.985
        assert entry.quantized.j_drop_points <= 0.3


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_int8_engines_on_a_gpu_are_refused_in_one_line(backend: GpuBackend) -> None:
    with pytest.raises(BackendError) as caught:
        open_engines("lite-int8", backend=backend)
    assert str(caught.value) == (
        "the propagation engine is int8, which backends cpu and openvino run, not "
        f"{backend}: use the engine directory that it was made from"
    )


def test_int8_engines_run_on_the_cpu_of_a_machine_with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpn.engines.open.gpu_unavailable_reason", lambda: None)
    with open_engines("lite-int8", threads=1) as engines:
        assert engines.backend == "cpu"
        assert "the propagation engine is int8" in engines.backend_note


def test_int8_masks_of_the_built_in_clip_are_as_good(clip: list[SyntheticFrame]) -> None:
    # Control: the masks are not those of the other engines.
    assert _mean_j(clip) - 0.01 < _mean_j(clip, engine_dir="lite-int8") != _mean_j(clip)


def test_all_files_together_are_small_enough_to_ship() -> None:
    package = default_engine_dir().parent
    sizes = [path.stat().st_size for path in package.rglob("*") if path.is_file()]
    assert 1_000_000 < sum(sizes) <= SIZE_LIMIT_BYTES


def test_shipped_licence_is_in_manifest_and_model_card() -> None:
    directory = default_engine_dir()
    assert load_manifest(directory).provenance.licence == "CC BY-NC 4.0"
    card = (REPOSITORY / "weights" / "lite" / "MODEL_CARD.md").read_text()
    assert "CC BY-NC 4.0" in card
    assert "DAVIS" in card
    assert "ECSSD" in card
    assert "COCO" in card
    assert "Apache-2.0" in card


def test_manifest_defaults_match_the_model_card() -> None:
    directory = default_engine_dir()
    card = (REPOSITORY / "weights" / "lite" / "MODEL_CARD.md").read_text()
    advice = load_manifest(directory).runtime_defaults
    assert advice
    for name, value in advice.items():
        text = str(value).lower() if isinstance(value, bool) else value
        assert f"`{name}={text}`" in card


@pytest.mark.parametrize("radius_px", [1, 2, 8])  # 8: with a classifier
def test_small_object_keeps_its_size(clip: list[SyntheticFrame], radius_px: int) -> None:
    """The frame does not move; with a classifier, the disc of 2 px grew over it."""
    rgb, labels = clip[0].rgb.copy(), np.zeros(clip[0].labels.shape, np.uint8)
    cv2.circle(rgb, (240, 100), radius_px, (255, 0, 0), -1)
    cv2.circle(labels, (240, 100), radius_px, 1, -1)
    with Pipeline.from_engines(threads=1) as pipeline:
        pipeline.start(rgb, labels)
        has_classifier = bool(pipeline._backend.snapshot().targets.given)  # type: ignore[union-attr]
        for _ in range(5):
            (track,) = pipeline.step(rgb).tracks
    assert has_classifier is (radius_px == 8)
    assert track.state == "tracked"
    assert 0.5 * (labels > 0).sum() <= track.area_px <= 2 * (labels > 0).sum()


def test_the_engines_earn_their_place_on_the_built_in_clip(clip: list[SyntheticFrame]) -> None:
    shipped = _mean_j(clip)
    assert shipped > 0.8
    # controls: J is lower without the network, and without the target model
    assert shipped > _mean_j(clip, use_propagation=False)
    assert shipped > _mean_j(clip, one_shot="off")

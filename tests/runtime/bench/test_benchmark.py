from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import open_engines
from mpn.engines.spec import Role
from mpn.errors import InputError, ManifestError, OutputError
from mpn.runtime.bench.benchmark import BenchmarkOptions, run_benchmark
from mpn.runtime.bench.figures import NetworkFigure, PipelineFigure, WallRun, peak_memory_mib
from mpn.runtime.bench.result import (
    BENCHMARK_SCHEMA,
    benchmark_document,
    check_result_path,
    fps_from_seconds,
    save_result,
    summary_ms,
)
from mpn.runtime.bench.variants import labels_of_objects, make_clip, variants_of
from mpn.runtime.options import (
    UNSET,
    FinetuneOptions,
    OsvosOptions,
    PipelineOptions,
    ResolvedOptions,
)
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.timing import STAGES
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.engines import FakeEngine, fake_engine_set, nothing_found

FRAMES, WARMUP = 3, 2
SIZE_HW = (64, 96)
ROUNDED_MS = 1e-3
"""Times are rounded to a microsecond."""


def options(**given: Any) -> BenchmarkOptions:
    given = {"frame_size_hw": SIZE_HW, "frames": FRAMES, "warmup": WARMUP} | given
    return BenchmarkOptions(backend="cpu", threads=1, **given)


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(
        tmp_path_factory.mktemp("engines") / "full", with_flow=True, with_osvos=True
    )


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def full(engine_dir: Path, lines: list[str]) -> dict[str, Any]:
    """A result with all engines and variants, and one object."""
    return run_benchmark(engine_dir, options(objects=(1,)), on_progress=lines.append)


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A result with DIS, no OSVOS, and more objects than in the clip and a batch."""
    directory = make_engine_dir(tmp_path_factory.mktemp("engines") / "least", max_objects=2)
    return run_benchmark(directory, options(objects=(5,), variants=("plain",)))


def test_result_reports_engines_and_backend(full: dict[str, Any], engine_dir: Path) -> None:
    assert (full["schema"], full["benchmark"]) == (BENCHMARK_SCHEMA, "fps")
    assert full["machine"]["cores"] >= 1
    assert "onnxruntime" in full["versions"]
    assert full["backend"]["used"] == "cpu"
    assert full["backend"]["threads"] == 1
    assert (full["frames"], full["warmup"], full["objects"]) == (FRAMES, WARMUP, [1])
    assert full["frame_size_hw"] == full["working_size_hw"] == list(SIZE_HW)
    manifest = load_manifest(engine_dir)
    assert full["engine"]["digests"] == {
        file.path: file.sha256 for entry in manifest.roles.values() for file in entry.files
    }
    assert {facts["precision"] for facts in full["engine"]["roles"].values()} == {"fp32"}
    assert full["load"]["n"] >= 2


def test_osvos_and_crf_are_measured_off_and_on(full: dict[str, Any]) -> None:
    runs = {run["variant"]: run for run in full["runs"]}
    assert list(runs) == ["plain", "osvos", "crf", "osvos+crf"]
    for name, run in runs.items():
        assert (run["osvos"], run["crf"]) == ("blend" if "osvos" in name else "off", "crf" in name)
        for figure in ("pipeline", "wall"):  # the wall run is in another process
            for stage in ("osvos", "crf"):
                assert (stage in run[figure]["stages"]) is (stage in name)
        networks = ["flow", "propagation"] + ["osvos"] * ("osvos" in name)
        assert run["engine_only"]["every_frame"] == networks


def test_result_reports_missing_osvos_and_flow(least: dict[str, Any]) -> None:
    (run,) = least["runs"]
    assert run["osvos"] == "off"
    assert run["engine_only"]["every_frame"] == ["propagation"]
    unmeasured = " ".join(least["not_measured"])
    for word in ("CRF", "fine-tuning", "GPU", "OSVOS", "flow network"):
        assert word in unmeasured


def test_measured_figures_are_not_listed_as_missing(full: dict[str, Any]) -> None:
    unmeasured = " ".join(full["not_measured"])
    for word in ("CRF", "OSVOS", "flow network"):
        assert word not in unmeasured


def test_stages_of_the_first_frame_are_reported(full: dict[str, Any]) -> None:
    for run in full["runs"]:
        stages_ms = run["pipeline"]["start_stages_ms"]
        assert {"input", "output"} <= set(stages_ms)
        assert sum(stages_ms.values()) <= run["pipeline"]["start_ms"] + len(stages_ms) * ROUNDED_MS


def test_objects_beyond_the_clip_and_the_batch(least: dict[str, Any]) -> None:
    (run,) = least["runs"]
    assert run["objects"] == 5
    assert run["engine_only"]["batches"]["propagation"] == 3  # 2 + 2 + 1
    assert run["pipeline"]["tracked_share"] == 1.0  # the tiny network returns its input


def test_every_figure_is_positive_and_agrees_with_itself(
    full: dict[str, Any], least: dict[str, Any]
) -> None:
    for run in [*full["runs"], *least["runs"]]:
        for name in ("engine_only", "pipeline", "wall"):
            figure = run[name]
            frame = figure["frame"]
            assert frame["n"] == FRAMES
            assert 0 < frame["min_ms"] <= frame["median_ms"] <= frame["p95_ms"]
            # The mean is above the minimum; late writers lower only the wall figure.
            assert 1e3 / figure["fps"] >= frame["min_ms"] - ROUNDED_MS
        stages = run["pipeline"]["stages"]
        assert set(stages) <= set(STAGES)
        assert {"flow", "warp", "propagation", "merge"} <= set(stages)
        assert all(1 <= stage["n"] <= FRAMES for stage in stages.values())
        assert run["pipeline"]["start_ms"] > 0
        wall = run["wall"]
        assert wall["backend"] == "cpu"
        assert wall["whole_run"]["frames"] == 1 + WARMUP + FRAMES
        assert wall["until_first_mask_ms"] > 0
        assert wall["first_step_ms"] > 0
        assert wall["stages"]["propagation"]["n"] == WARMUP + FRAMES
        assert {"wait for frame", "wait for writers"} <= set(wall["stages"])
        assert wall["peak_memory_mib"] is None or wall["peak_memory_mib"] > 1


def test_progress_names_the_starting_variant(full: dict[str, Any], lines: list[str]) -> None:
    assert lines[:2] == ["opening the engines", "rendering the clip"]
    assert len(lines) == 2 + 1 + 4  # one object number in memory, four runs from file to files


def test_missing_engines_end_it_before_anything_is_rendered(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(ManifestError, match="there is no engine directory"):
        run_benchmark(tmp_path / "absent", options(), on_progress=lines.append)
    assert lines == []


def test_opencv_threads_are_given_back(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def stop(*_: Any, **__: Any) -> None:
        seen.append(cv2.getNumThreads())
        raise InputError("stop here")

    monkeypatch.setattr("mpn.runtime.bench.benchmark.make_clip", stop)
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        with pytest.raises(InputError, match="stop here"):
            run_benchmark(engine_dir, options())
        assert (seen, cv2.getNumThreads()) == ([1], 2)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objects": ()}, "numbers of objects must be given"),
        ({"objects": (1, 1)}, "each once"),
        ({"objects": (0,)}, "must be 1"),
        ({"objects": (33,)}, "must be 1..32"),
        ({"frame_size_hw": (480, 853)}, "even .* got 853x480"),
        ({"frame_size_hw": (16, 96)}, "at least 32x32"),
        ({"variants": ()}, "variants must be given"),
        ({"variants": ("plain", "plain")}, "each once"),
        ({"variants": ("crf+osvos",)}, "'crf\\+osvos' is no variant"),
        ({"variants": ("CRF",)}, "'CRF' is no variant"),
        ({"frames": 0}, "option frames"),
        ({"warmup": 0}, "option warmup"),
    ],
)
def test_bad_options_are_one_clear_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        options(**given)
    assert "\n" not in str(caught.value)


def test_threads_must_be_positive() -> None:
    with pytest.raises(InputError, match="threads must be a number of threads of at least 1"):
        BenchmarkOptions(threads=0)


# The clip and its labels.


def test_clip_in_memory_is_the_file(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, frames=3, size_hw=SIZE_HW)
    assert clip.video.is_file()
    assert [frame.shape for frame in clip.frames] == [(*SIZE_HW, 3)] * 3
    assert set(np.unique(clip.labels)) == {0, 1, 2, 3}


@pytest.fixture
def two_objects() -> np.ndarray:
    """Object 4 of 40x20 px and object 9 of 10x10 px."""
    labels = np.zeros((50, 60), np.uint8)
    labels[5:25, 10:50] = 4
    labels[35:45, 2:12] = 9
    return labels


@pytest.mark.parametrize("objects", [1, 2, 3, 5, 8])
def test_labels_hold_exactly_so_many_objects(two_objects: np.ndarray, objects: int) -> None:
    labels = labels_of_objects(two_objects, objects)
    assert set(np.unique(labels)) == set(range(objects + 1))
    assert np.array_equal(labels, labels_of_objects(two_objects, objects))
    if objects > 1:
        assert np.array_equal(labels > 0, two_objects > 0)


def test_fewer_objects_are_the_first(two_objects: np.ndarray) -> None:
    assert np.array_equal(labels_of_objects(two_objects, 1), (two_objects == 4).astype(np.uint8))


def test_largest_object_is_halved_across_its_longer_side(two_objects: np.ndarray) -> None:
    labels = labels_of_objects(two_objects, 3)
    assert (labels[5:25, 10:30] == 1).all()
    assert (labels[5:25, 30:50] == 3).all()
    assert (labels[35:45, 2:12] == 2).all()


def test_objects_too_small_to_cut_are_an_error(two_objects: np.ndarray) -> None:
    assert labels_of_objects(two_objects, 16).max() == 16
    with pytest.raises(InputError, match="60x50 is too small for 100 objects"):
        labels_of_objects(two_objects, 100)


# The figures.


def test_networks_alone_run_on_the_same_inputs_every_time(two_objects: np.ndarray) -> None:
    frames = [np.full((50, 60, 3), level, np.uint8) for level in (10, 20)]
    engines = fake_engine_set(
        osvos=nothing_found,
        flow=lambda inputs: {"flow_px": inputs["frame0"][:, :2] * 0},
        max_objects=2,
    )
    figure = NetworkFigure(engines, ResolvedOptions(), frames, labels_of_objects(two_objects, 3))
    for _ in range(4):
        figure.step()
    calls = {role: engine.calls for role, engine in engines.engines.items() if _is_fake(engine)}
    assert {role: len(made) for role, made in calls.items()} == {
        "flow": 4, "propagation": 8, "osvos": 4,
    }  # fmt: skip
    assert [len(call["rgb_prob"]) for call in calls["propagation"]] == [2, 1] * 4
    for made, period in (
        (calls["flow"], 1),
        (calls["propagation"], 2),
        (calls["osvos"], 1),
    ):
        for earlier, later in zip(made, made[period:], strict=False):
            assert all(np.array_equal(earlier[name], later[name]) for name in earlier)
    # Backward flow, as in the pipeline: from the current frame to the previous one.
    assert calls["flow"][0]["frame0"].mean() == 20
    assert calls["flow"][0]["frame1"].mean() == 10

    result = figure.as_json(warmup=1, every_frame=("flow", "propagation"))
    assert result["every_frame"] == ["flow", "propagation"]
    assert {role: summary["n"] for role, summary in result["roles"].items()} == {
        "flow": 3, "propagation": 3, "osvos": 3,
    }  # fmt: skip
    parts_ms = result["roles"]["flow"]["min_ms"] + result["roles"]["propagation"]["min_ms"]
    assert result["frame"]["min_ms"] >= parts_ms - 2 * ROUNDED_MS


@pytest.mark.parametrize(("one_by_one", "batches"), [((), [4, 2]), (("propagation",), [2, 2, 2])])
def test_engine_only_figure_includes_flip_tta(
    two_objects: np.ndarray, one_by_one: tuple[Role, ...], batches: list[int]
) -> None:
    frames = [np.zeros((50, 60, 3), np.uint8)] * 2
    labels = labels_of_objects(two_objects, 3)
    engines = fake_engine_set(max_objects=4)
    NetworkFigure(engines, ResolvedOptions(flip_tta=True), frames, labels, one_by_one).step()
    calls = engines.propagation.calls  # type: ignore[attr-defined]
    assert [len(call["rgb_prob"]) for call in calls] == batches
    every = np.concatenate([call["rgb_prob"] for call in calls])
    assert sum(np.array_equal(a, b[..., ::-1]) for a in every for b in every) >= 6


@pytest.mark.parametrize(
    ("mode", "objects", "runs"),
    [
        ("auto", 1, False), ("blend", 1, True), ("blend", 2, True),
        ("redetect-only", 1, False), ("off", 1, False),
    ],
)  # fmt: skip
def test_engine_only_figure_counts_osvos_per_frame(
    two_objects: np.ndarray, mode: Any, objects: int, runs: bool
) -> None:
    engines = fake_engine_set(osvos=nothing_found)
    figure = PipelineFigure(
        Pipeline(engines, options=PipelineOptions(osvos=OsvosOptions(mode=mode)))
    )
    frame = np.zeros((50, 60, 3), np.uint8)
    figure.start(frame, labels_of_objects(two_objects, objects))
    for _ in range(2):
        figure.step(frame)
    assert ("osvos" in figure.roles_of_every_frame(warmup=1)) is runs


def test_networks_of_single_objects_run_one_by_one(two_objects: np.ndarray) -> None:
    frames = [np.zeros((50, 60, 3), np.uint8)] * 2
    engines = fake_engine_set(osvos=nothing_found)
    labels = labels_of_objects(two_objects, 3)
    roles: tuple[Role, ...] = ("propagation", "osvos")
    figure = NetworkFigure(engines, ResolvedOptions(), frames, labels, one_by_one=roles)
    figure.step()
    calls = {role: engine.calls for role, engine in engines.engines.items() if _is_fake(engine)}
    assert [len(call["rgb_prob"]) for call in calls["propagation"]] == [1, 1, 1]
    assert len(calls["osvos"]) == 3


def test_lost_objects_are_reported(two_objects: np.ndarray) -> None:
    """A network that finds nothing makes a pipeline fast; this share reports it."""
    frame = np.zeros((50, 60, 3), np.uint8)
    shares = {}
    for name, engines in (
        ("finds", fake_engine_set()),
        ("loses", fake_engine_set(propagation=lambda i: {"prob": i["rgb_prob"][:, 3:4] * 0})),
    ):
        figure = PipelineFigure(Pipeline(engines))
        figure.start(frame, two_objects)
        for _ in range(3):
            figure.step(frame)
        shares[name] = figure.as_json(warmup=1)["tracked_share"]
    assert shares == {"finds": 1.0, "loses": 0.0}


def test_pipelines_on_shared_engines_leave_them_open(engine_dir: Path) -> None:
    with open_engines(engine_dir, backend="cpu", threads=1) as engines:
        for variant in variants_of(engines.manifest, ("plain", "osvos")):
            with variant.open_pipeline(engine_dir, engines) as pipeline:
                figure = PipelineFigure(pipeline)
                frame = np.zeros((*SIZE_HW, 3), np.uint8)
                figure.start(frame, np.ones(SIZE_HW, np.uint8))
                figure.step(frame)
                assert figure.as_json(warmup=0)["frame"]["n"] == 1


def test_finetuning_time_is_reported_separately(tmp_path: Path) -> None:
    directory = make_adapt_dir(tmp_path / "engines")
    quick = FinetuneOptions(steps=3, size=65, batch=2)
    result = run_benchmark(
        directory, options(objects=(2,), variants=("plain", "crf+finetune"), finetune=quick)
    )
    plain, tuned = result["runs"]
    assert plain["finetune"] is None
    assert tuned["finetune"]["roles"] == ["propagation"]
    assert tuned["finetune"]["recipes"]["propagation"]["steps"] == 3
    assert "finetune" not in plain["pipeline"]["start_stages_ms"]
    finetune_ms = tuned["pipeline"]["start_stages_ms"]["finetune"]
    assert 0 < finetune_ms <= tuned["pipeline"]["start_ms"]
    assert plain["wall"]["finetune_ms"] == 0
    assert 0 < tuned["wall"]["finetune_ms"] <= tuned["wall"]["until_first_mask_ms"]
    assert tuned["engine_only"]["batches"]["propagation"] == 2  # one network per object
    assert plain["engine_only"]["batches"]["propagation"] == 1
    assert "fine-tuning" not in " ".join(result["not_measured"])


def test_osvos_variants_run_osvos_in_every_frame(tmp_path: Path) -> None:
    advice = {"osvos.mode": "off", "osvos.every": 3, "flip_tta": True}
    manifest = replace(
        load_manifest(make_engine_dir(tmp_path / "e", with_osvos=True)), runtime_defaults=advice
    )
    plain, osvos = (v.options for v in variants_of(manifest, ("plain", "osvos")))
    assert (plain.osvos.mode, osvos.osvos.mode, osvos.osvos.every) == ("off", "blend", 1)
    assert plain.flip_tta is osvos.flip_tta is True


def test_default_variant_matches_a_run(tmp_path: Path) -> None:
    advice = {"osvos.every": 3, "crf": True}
    plain = replace(load_manifest(make_engine_dir(tmp_path / "e")), runtime_defaults=advice)
    able = replace(load_manifest(make_adapt_dir(tmp_path / "a")), runtime_defaults=advice)
    for manifest, roles in ((plain, None), (able, ("propagation", "osvos"))):
        (variant,) = variants_of(manifest, ("default",))
        assert variant.options == PipelineOptions().with_defaults(advice)
        assert (variant.finetune and variant.finetune.roles) == roles


def test_fine_tuning_that_the_engines_cannot_do_is_an_error(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path / "engines")
    with pytest.raises(InputError, match=r"variant 'finetune' cannot be run: .* have no graphs"):
        run_benchmark(directory, options(variants=("finetune",)))


def test_wall_time_includes_pending_writes() -> None:
    report = {
        "frames": 4,
        "backend": {"used": "cpu"},
        "finetune": {"ran": False, "reason": "not requested"},
        "stages": {"flow": {"frames": 3, "min_s": 0.001, "median_s": 0.002, "p95_s": 0.0045}},
    }
    run = WallRun(report, (1.0, 1.5, 1.6, 1.8), total_s=1.9, peak_memory_mib=None)
    result = run.as_json(warmup=1)
    assert result["fps"] == 5.0  # 2 frames in 0.1 + 0.2 s, then 0.1 s of writing
    assert result["frame"] == {"n": 2, "min_ms": 100.0, "median_ms": 150.0, "p95_ms": 195.0}
    assert result["stages"]["flow"] == {"n": 3, "min_ms": 1.0, "median_ms": 2.0, "p95_ms": 4.5}
    assert result["whole_run"] == {"frames": 4, "seconds": 1.9, "fps": 2.105}
    assert (result["until_first_mask_ms"], result["first_step_ms"]) == (1000.0, 500.0)


def test_options_are_passed_to_another_process() -> None:
    given = PipelineOptions(threshold=0.4, osvos=OsvosOptions(mode="off"))
    there = pickle.loads(pickle.dumps(given))
    assert there == given
    assert there.size is UNSET


def test_peak_memory_is_of_the_size_of_a_process() -> None:
    peak_mib = peak_memory_mib()
    assert peak_mib is None or 10 < peak_mib < 1e6


# The result format.


def test_summary_in_milliseconds() -> None:
    assert summary_ms(value / 100 for value in range(1, 101)) == {
        "n": 100, "min_ms": 10.0, "median_ms": 505.0, "p95_ms": 950.5,
    }  # fmt: skip


def test_fps_is_frames_by_seconds_so_that_slow_frames_count() -> None:
    assert fps_from_seconds([0.1, 0.1, 0.8]) == 3.0


def test_document_and_file(tmp_path: Path) -> None:
    document = benchmark_document("name", {"runs": []}, more_versions={"torch": "1"})
    assert list(document) == ["schema", "benchmark", "machine", "versions", "runs"]
    assert document["versions"]["torch"] == "1"
    save_result(tmp_path / "new" / "r.json", document)
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == document


def test_result_path_is_checked_beforehand_and_nothing_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_result_path(tmp_path / "new" / "r.json")
    for bad, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "r.json", "is a file, not a folder"),
    ):
        with pytest.raises(OutputError, match=says):
            check_result_path(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _is_fake(engine: object) -> bool:
    return isinstance(engine, FakeEngine)

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy.ablations import (
    DEFAULT,
    PAPER_CHAIN,
    TARGET_CHAIN,
    Ablation,
    FinetuneCosts,
    ablations_from_names,
    with_variants,
)
from benchmarks.accuracy.davis import Measured, main, run_sequence
from benchmarks.report.regressions import print_comparison
from benchmarks.report.schema import load_result
from benchmarks.report.tables import davis_table
from mpn import Pipeline, PipelineOptions
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import open_engines
from mpn.engines.spec import features_spec, propagation_spec
from mpn.errors import InputError
from mpn.evaluation import evaluate_dataset, load_annotation, load_davis, region_similarity
from mpn.runtime.finetune.plan import FinetuneOptions
from mpn.synthetic import render_clip
from tests.benchmarks.accuracy.conftest import FRAMES, SIZE_HW
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.engines import fake_engine_set


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("engines") / "tiny")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["davis.py", *map(str, arguments)])
    return main()


@pytest.fixture(scope="module")
def result(davis_folder: Path, engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run every set of stages."""
    out = tmp_path_factory.mktemp("out") / "davis.json"
    with pytest.MonkeyPatch.context() as patch:
        code = run(
            patch, "--davis-root", davis_folder, "--engine-dir", engine_dir, "--threads", "1",
            "--finetune-steps", "2", "--warmup", "1", "-o", out,
        )  # fmt: skip
    assert code == 0
    return load_result(out)


def test_ablations_chain_adds_one_stage_each(result: Any) -> None:
    chain = PAPER_CHAIN
    run = [name for name in DEFAULT if name not in ("target", "updates", "no-channel")]
    assert list(result["ablations"]) == run
    stages = {name: done["stages"] for name, done in result["ablations"].items()}
    assert [stages[name] for name in chain] == [list(chain[: i + 1]) for i in range(len(chain))]
    assert stages["paper-crf"] == list(chain)
    options = {name: done["options"] for name, done in result["ablations"].items()}
    assert [options[name]["use_propagation"] for name in chain] == [False, True, True, True, True]
    assert [options[name]["osvos.mode"] for name in chain] == ["off"] * 3 + ["auto"] * 2
    assert [options[name]["crf"] for name in chain] == [False] * 4 + [True]
    for name in ("no-finetuning", "fast"):
        assert stages[name] == ["warp", "propagation", "osvos"]
        assert result["ablations"][name]["finetune"] is None
    assert options["no-finetuning"] == options["osvos"]
    assert options["fast"] == options["osvos"] | {"flip_tta": False}
    assert "target: the engines 'tiny' do not run the target model" in result["not_measured"]


def test_ablations_with_target_change_one_thing_each(engine_dir: Path) -> None:
    """``updates`` is the default of ``mpn run``; sets equal to another are left out."""
    manifest = load_manifest(engine_dir)
    spec = features_spec((65, 97), channels=3)
    features = replace(
        manifest.roles["osvos"], inputs=spec.inputs, outputs=spec.outputs, adapt=None
    )
    manifest = replace(manifest, roles={**manifest.roles, "features": features})
    with_score = propagation_spec(65, 2, 5).inputs
    propagation = replace(manifest.roles["propagation"], inputs=with_score)
    takes = replace(manifest, roles={**manifest.roles, "propagation": propagation})
    (without,), left_out = ablations_from_names(takes, ["no-channel"], FinetuneOptions())
    assert left_out == []
    assert not without.feeds_score
    built, left_out = ablations_from_names(manifest, DEFAULT, FinetuneOptions())
    chain = [name for name in TARGET_CHAIN if name != "no-channel"]
    assert [ablation.name for ablation in built] == [*chain, "paper-crf"]
    assert all(ablation.feeds_score for ablation in built)
    assert [line.partition(":")[0] for line in left_out] == [
        "no-channel", "no-finetuning", "fast", "paper-warp", "paper-propagation",
    ]  # fmt: skip
    assert left_out[0].endswith("take no score")
    assert left_out[1].endswith("it is the same as 'updates'")
    by_name = {ablation.name: ablation for ablation in built}
    default = PipelineOptions().with_defaults(manifest.runtime_defaults)
    assert by_name["updates"].options == by_name["finetuned"].options == default
    assert by_name["target"].options == default.with_values({"target.update_every": 0})
    assert by_name["propagation"].options == default.with_values({"one_shot": "off"})
    assert by_name["osvos"].options == default.with_values({"one_shot": "osvos"})
    assert by_name["crf"].options == default.with_values({"crf": True})
    roles_of = {a.name: None if a.finetune is None else a.finetune.roles for a in built}
    tuned = {"finetuned": ("propagation",), "osvos": ("propagation", "osvos")}
    assert roles_of == dict.fromkeys(by_name) | tuned | {"paper-crf": tuned["osvos"]}
    assert by_name["paper-crf"].options.one_shot == "osvos"


def test_engines_of_no_channel_get_half_and_blend() -> None:
    got: list[np.ndarray] = []

    def mean_of_prior_and_score(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        got.append(inputs["rgb_prob_score"])
        return {"prob": inputs["rgb_prob_score"][:, 3:].mean(axis=1, keepdims=True)}

    engines = fake_engine_set(propagation=mean_of_prior_and_score, takes_score=True)
    options = PipelineOptions().with_defaults({})
    ablation = Ablation("no-channel", (), options, None, feeds_score=False)
    assert replace(ablation, feeds_score=True).engines(engines) is engines
    changed = ablation.engines(engines).propagation
    assert changed.spec.input_names == ("rgb_prob",)
    size = changed.spec.inputs[0].shape[-1]
    prior = np.random.default_rng(0).random((2, 4, size, size), np.float32)
    prob = changed.run({"rgb_prob": prior})["prob"]
    np.testing.assert_array_equal(got[0][:, :4], prior)
    np.testing.assert_array_equal(got[0][:, 4], 0.5)
    np.testing.assert_allclose(prob, (prior[:, 3:] + 0.5) / 2, atol=1e-6)


def test_davis_reports_finetuning_separately(result: Any) -> None:
    for name, done in result["ablations"].items():
        is_tuned = name.removeprefix("paper-") in ("finetuned", "osvos", "crf")
        assert (done["finetune"] is not None) is is_tuned
        if is_tuned:
            roles = ["propagation"] if name.endswith("finetuned") else ["propagation", "osvos"]
            assert done["finetune"]["roles"] == roles
            assert done["finetune"]["steps"] == dict.fromkeys(roles, 2)
            assert done["wall_fps_with_finetuning"] <= done["wall_fps"]
        assert done["first_mask_s"].keys() == {"pond", "koi"}
        if is_tuned:
            assert sum(done["first_mask_s"].values()) > done["finetune"]["seconds"]


def test_finetune_costs_are_shared_between_sets(engine_dir: Path) -> None:
    """Weights are trained once, and each set that uses them has their cost."""
    names = ["finetuned", "osvos", "paper-osvos"]
    manifest = replace(load_manifest(engine_dir), runtime_defaults={"flow_check_px": 10.0})
    built, _ = ablations_from_names(manifest, names, FinetuneOptions())
    finetuned, osvos, paper = built

    def report(role: str, seconds: float) -> dict[str, Any]:
        return {"object_id": 1, "role": role, "cached": seconds == 0, "seconds": seconds}

    costs = FinetuneCosts()
    assert costs.cost_s(finetuned, "dog", [report("propagation", 20.0)]) == 20.0
    assert costs.cost_s(osvos, "dog", [report("propagation", 0.0), report("osvos", 5.0)]) == 25.0
    # Propagation weights depend on the options of the set, OSVOS weights do not.
    assert costs.cost_s(paper, "dog", [report("propagation", 30.0), report("osvos", 0.0)]) == 35.0
    assert costs.cost_s(osvos, "dog", [report("propagation", 0.0), report("osvos", 0.0)]) == 25.0


def test_davis_result_describes_data(result: Any) -> None:
    assert (result["frame_size_hw"], result["objects"]) == (list(SIZE_HW), [1, 2])
    assert result["frames"] == 2 * (FRAMES - 1)
    assert result["warmup"] == 1
    assert result["backend"]["used"] == "cpu"
    assert result["data"]["sequences"]["pond"] == {
        "frames": FRAMES, "objects": 2, "size_hw": list(SIZE_HW),
    }  # fmt: skip
    for done in result["ablations"].values():
        assert set(done["objects"]) == {"pond_1", "pond_2", "koi_1"}
        assert done["wall"]["n"] == done["pipeline"]["n"] == result["frames"]
        assert done["pipeline"]["median_ms"] <= done["wall"]["median_ms"]


def test_davis_scores_equal_evaluation_of_saved_masks(davis_folder: Path, tmp_path: Path) -> None:
    dataset = load_davis(davis_folder, "val")
    done = Measured()
    engine_dir = make_engine_dir(tmp_path / "engines", frame_size_hw=SIZE_HW)
    with Pipeline.from_engines(engine_dir, backend="cpu", threads=1) as pipeline:
        for sequence in dataset.sequences:
            (tmp_path / sequence.name).mkdir()
            images = davis_folder / "JPEGImages" / "480p"
            run_sequence(pipeline, sequence, images, tmp_path / sequence.name, done)
    scored = evaluate_dataset(dataset, tmp_path)
    assert scored.sequences == tuple(done.scores)
    assert 0 < scored.j_and_f < 1  # the masks are not the ground truth


def test_ablations_missing_stages_are_reported(tmp_path: Path) -> None:
    manifest = load_manifest(make_engine_dir(tmp_path / "engines"))
    built, left_out = ablations_from_names(manifest, DEFAULT, FinetuneOptions())
    assert [ablation.name for ablation in built] == [
        "warp", "propagation", "crf", "no-finetuning", "fast", "paper-warp", "paper-propagation",
        "paper-crf",
    ]  # fmt: skip
    assert built[2].stages == ("warp", "propagation", "crf")
    assert built[2].finetune is None
    missing = ["target", "updates", "no-channel", "finetuned", "osvos"]
    assert [line.partition(":")[0] for line in left_out] == missing


def test_ablations_paper_has_no_flow_check_nor_colours(tmp_path: Path) -> None:
    advice = {"flow_check_px": 10.0, "colour_weight": 0.75}
    directory = make_engine_dir(tmp_path / "engines", runtime_defaults=advice)
    names = ["warp", "paper-warp"]
    ours, paper = ablations_from_names(load_manifest(directory), names, FinetuneOptions())[0]
    assert (ours.options.flow_check_px, ours.options.colour_weight) == (10.0, 0.75)
    assert (paper.options.flow_check_px, paper.options.colour_weight) == (0.0, 0.0)


@pytest.mark.parametrize(
    "names", [[], ["warp", "warp"], ["everything"], ["paper-paper-warp"], ["paper-target"]]
)
def test_ablations_unknown_names_raise(names: list[str], tmp_path: Path) -> None:
    manifest = load_manifest(make_engine_dir(tmp_path / "engines"))
    with pytest.raises(InputError, match="ablation"):
        ablations_from_names(manifest, names, FinetuneOptions())


def test_davis_variant_changes_options_only(
    davis_folder: Path, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "davis.json"
    code = run(
        monkeypatch, "--davis-root", davis_folder, "--engine-dir", engine_dir, "--threads", "1",
        "--ablation", "warp,propagation", "--sequences", "koi", "--warmup", "1",
        "--variant", "wide=propagation:roi_margin_frac=0.5,use_propagation=false", "-o", out,
    )  # fmt: skip
    assert code == 0
    done = load_result(out)
    assert list(done["data"]["sequences"]) == ["koi"]
    options = {name: figures["options"] for name, figures in done["ablations"].items()}
    changed = {"roi_margin_frac": 0.5, "use_propagation": False}
    assert options["wide"] == options["propagation"] | changed
    # Without the network only the warp is left, whatever the margin.
    j = {name: figures["J-Mean"] for name, figures in done["ablations"].items()}
    assert j["wide"] == j["warp"] != j["propagation"]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("wide", "NEWNAME=SET:OPTION=VALUE"),
        ("wide=warp", "NEWNAME=SET:OPTION=VALUE"),
        ("warp=warp:crf=true", "NEWNAME=SET:OPTION=VALUE"),
        ("wide=crf:crf=true", "'crf' does not run"),
        ("wide=warp:depth=1", "depth"),
        ("wide=warp:crf", "NAME=VALUE"),
    ],
)
def test_with_variants_invalid_raises(variant: str, message: str, engine_dir: Path) -> None:
    built, _ = ablations_from_names(load_manifest(engine_dir), ["warp"], FinetuneOptions())
    with pytest.raises(InputError, match=message):
        with_variants(built, [variant])


def test_davis_sparse_truth_scores_annotated_frames(
    davis_folder: Path, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images are segmented, and frames without annotation are not scored."""
    root = Path(shutil.copytree(davis_folder, tmp_path / "davis"))
    annotations = root / "Annotations" / "480p" / "koi"
    for stem in ("00001", "00003"):
        (annotations / f"{stem}.png").unlink()
    (root / "ImageSets" / "2017" / "val.txt").write_text("koi\n")
    out, masks = tmp_path / "davis.json", tmp_path / "masks"
    code = run(
        monkeypatch, "--davis-root", root, "--engine-dir", engine_dir, "--threads", "1",
        "--ablation", "warp", "--warmup", "1", "--sparse-truth", "--masks", masks, "-o", out,
    )  # fmt: skip
    assert code == 0
    done = load_result(out)
    facts = {"frames": FRAMES, "annotated": 3, "objects": 1, "size_hw": list(SIZE_HW)}
    assert done["data"]["sequences"] == {"koi": facts}
    assert done["frames"] == done["ablations"]["warp"]["wall"]["n"] == FRAMES - 1
    assert len(list((masks / "warp" / "koi").iterdir())) == FRAMES
    values = [
        region_similarity(*(load_annotation(folder / f"{stem}.png") == 1 for folder in folders))
        for folders in [(annotations, masks / "warp" / "koi")]
        for stem in ("00002", "00004")
    ]
    assert done["ablations"]["warp"]["J-Mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert "(koi: 5 frames, 3 annotated)" in davis_table(done, True)


def test_shared_engines_stay_open(engine_dir: Path) -> None:
    from mpn.runtime.bench.variants import pipeline_on_shared_engines

    with open_engines(engine_dir, backend="cpu", threads=1) as engines:
        clip = list(render_clip(frames=3, size_hw=SIZE_HW, objects=1))
        for _ in range(2):
            with pipeline_on_shared_engines(engine_dir, engines, PipelineOptions()) as pipeline:
                pipeline.start(clip[0].rgb, clip[0].labels)
                pipeline.step(clip[1].rgb)


def test_davis_finetune_cache_leaves_out_cost(
    davis_folder: Path, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, written = [], []
    for number in range(2):
        out, cache = tmp_path / f"{number}.json", tmp_path / "cache"
        code = run(
            monkeypatch, "--davis-root", davis_folder, "--engine-dir", engine_dir, "--threads",
            "1", "--ablation", "finetuned", "--finetune-steps", "2", "--warmup", "1",
            "--finetune-cache", cache, "-o", out,
        )  # fmt: skip
        assert code == 0
        results.append(load_result(out))
        written.append({path.name: path.stat().st_ino for path in cache.iterdir()})
    assert written[0] == written[1] != {}
    first, second = (result["ablations"]["finetuned"] for result in results)
    assert first["objects"] == second["objects"]
    assert first["finetune"] is second["finetune"] is None
    assert "first_mask_s" not in first
    assert "from other runs" in " ".join(results[0]["not_measured"])


def test_davis_masks_option_saves_masks(
    davis_folder: Path, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, masks = tmp_path / "davis.json", tmp_path / "masks"
    code = run(
        monkeypatch, "--davis-root", davis_folder, "--engine-dir", engine_dir, "--threads", "1",
        "--ablation", "warp,propagation", "--warmup", "1", "--masks", masks, "-o", out,
    )  # fmt: skip
    assert code == 0
    for name, done in load_result(out)["ablations"].items():
        scored = evaluate_dataset(load_davis(davis_folder, "val"), masks / name)
        assert float(np.mean([k.region.mean for s in scored.sequences for k in s.objects])) == (
            pytest.approx(done["J-Mean"], abs=1e-12)
        )


def test_davis_missing_image_exits_1_without_result(
    davis_folder: Path,
    engine_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(davis_folder, tmp_path / "davis"))
    (root / "JPEGImages" / "480p" / "koi" / "00003.jpg").unlink()
    out = tmp_path / "davis.json"
    code = run(
        monkeypatch, "--davis-root", root, "--engine-dir", engine_dir, "--ablation", "warp",
        "--threads", "1", "-o", out,
    )  # fmt: skip
    assert code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("00003.jpg: no such image, or not readable")
    assert not out.exists()


def test_davis_result_compares_with_itself(result: Any, tmp_path: Path) -> None:
    path = tmp_path / "davis.json"
    path.write_text(json.dumps(result))
    assert print_comparison(path, path, force=False) == 0

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpn.engines.directory.entries import FinetuneEntry, QuantizedEntry
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import Manifest
from mpn.engines.spec import Role
from mpn.errors import EngineError
from mpn.runtime.finetune.plan import (
    FinetunePlan,
    finetunable_roles,
    finetune_as_json,
    options_affecting_weights,
    options_for,
    options_in_cache_key,
    plan_finetuning,
)
from mpn.runtime.options import (
    FinetuneOptions,
    OsvosOptions,
    PipelineOptions,
    ResolvedOptions,
    ResolvedOsvos,
)
from tests.builders.engine_dirs import MANIFEST_0_1
from tests.emulation.engines import fake_engine_set, nothing_found, pooled_colours

ALL = ResolvedOptions()


def manifest_with(*adaptable: Role, **advice: Any) -> Manifest:
    """Make a manifest of propagation and OSVOS that can fine-tune the given roles."""
    manifest = fake_engine_set(osvos=nothing_found, runtime_defaults=advice).manifest
    entry = FinetuneEntry(
        optimizer="adamw",
        settings={},
        state=("exp_avg",),
        graphs={"all": FileDigest("adapt.onnx", "0" * 64)},
        features={},
        tensors=(),
    )
    roles = {
        role: replace(found, adapt=entry if role in adaptable else None)
        for role, found in manifest.roles.items()
    }
    return replace(manifest, roles=roles)


BOTH = manifest_with("propagation", "osvos")
NONE = manifest_with()


def planned(manifest: Manifest, **given: Any) -> FinetunePlan:
    rest: dict[str, Any] = {"must_finetune": False, "is_live": False, **given}
    finetune = rest.pop("finetune", FinetuneOptions(steps=3))
    options = replace(rest.pop("options", PipelineOptions()), finetune=finetune)
    return plan_finetuning(manifest, options, **rest)


@pytest.mark.parametrize(
    ("manifest", "options", "roles"),
    [
        (BOTH, ALL, ("propagation", "osvos")),
        (BOTH, ResolvedOptions(osvos=ResolvedOsvos(mode="off")), ("propagation",)),
        (BOTH, ResolvedOptions(use_propagation=False), ("osvos",)),
        (manifest_with("osvos"), ALL, ("osvos",)),
        (NONE, ALL, ()),
    ],
)
def test_plan_holds_networks_that_run_and_can_be_finetuned(
    manifest: Manifest, options: ResolvedOptions, roles: tuple[Role, ...]
) -> None:
    assert finetunable_roles(manifest, options) == roles
    if roles:
        found = options_for(manifest, options, FinetuneOptions(seed=5))
        assert found == FinetuneOptions(seed=5, roles=roles)
        assert planned(manifest, options=options).options == FinetuneOptions(steps=3, roles=roles)


def test_plan_follows_the_advice_of_the_manifest() -> None:
    advising = manifest_with("propagation", "osvos", osvos="off")
    found = planned(advising).options
    assert found is not None
    assert found.roles == ("propagation",)


def test_plan_gives_the_reason_if_not_possible() -> None:
    assert planned(NONE).options is None
    assert "the engines 'fake' have no graphs to fine-tune with" in planned(NONE).why_not
    only_osvos = planned(
        manifest_with("osvos"), options=PipelineOptions(osvos=OsvosOptions(mode="off"))
    )
    assert only_osvos == FinetunePlan(None, "no network that can be fine-tuned is in use")
    assert planned(BOTH, finetune=None) == FinetunePlan(None, "not requested")
    quantized = QuantizedEntry(1, 1, (), "", 0.0, 1.0)
    entry = replace(NONE.roles["propagation"], precision="int8", quantized=quantized)
    int8 = replace(NONE, roles={**NONE.roles, "propagation": entry})
    assert "an int8 network cannot be fine-tuned" in planned(int8).why_not


def test_plan_omits_finetuning_with_the_target_model_alone() -> None:
    features = fake_engine_set(features=pooled_colours).manifest.roles["features"]
    with_target = replace(BOTH, roles={**BOTH.roles, "features": features})
    assert planned(with_target) == FinetunePlan(
        None, "the target model separates the objects without it"
    )
    required = planned(with_target, must_finetune=True).options
    assert required is not None
    assert required.roles == ("propagation",)
    for one_shot, tuned in (("both", ("propagation", "osvos")), ("off", ("propagation",))):
        found = planned(with_target, options=PipelineOptions(one_shot=one_shot)).options
        assert found is not None
        assert found.roles == tuned


def test_plan_names_networks_that_do_not_run() -> None:
    only_osvos = FinetuneOptions(roles=("osvos",))
    with pytest.raises(EngineError, match="no network of osvos both runs"):
        options_for(BOTH, ResolvedOptions(one_shot="off"), only_osvos)


def test_plan_raises_if_required_but_not_possible() -> None:
    with pytest.raises(EngineError, match="have no graphs to fine-tune with: export it again"):
        planned(NONE, must_finetune=True)
    with pytest.raises(EngineError, match="have no graphs"):
        options_for(NONE, ALL, FinetuneOptions())


def test_plan_leaves_out_a_live_source_unless_required() -> None:
    assert planned(BOTH, is_live=True).options is None
    assert "live" in planned(BOTH, is_live=True).why_not
    assert planned(BOTH, is_live=True, must_finetune=True).options is not None


def test_finetune_as_json_leaves_out_cache_dir() -> None:
    found = finetune_as_json(FinetuneOptions(steps=3, seed=4, cache_dir=Path("kept")))
    assert (found["steps"], found["seed"], found["roles"]) == (3, 4, ["propagation", "osvos"])
    assert found["recipes"]["propagation"]["steps"] == 3
    assert found["recipes"]["propagation"]["size_px"] > 0
    assert "kept" not in str(found)
    assert found != finetune_as_json(FinetuneOptions(steps=3, seed=5))


def test_options_after_the_network_do_not_affect_weights() -> None:
    kept = ResolvedOptions(size=360, roi_margin_frac=0.05, colour_weight=0.75)
    later = {"osvos.mode": "off", "osvos.every": 5, "crf": True, "redetect.area_frac_min": 0.2}
    other = kept.with_values(later)
    assert options_in_cache_key(kept) == options_in_cache_key(other)
    assert options_in_cache_key(kept) != options_in_cache_key(ALL)
    assert options_affecting_weights(kept) == options_affecting_weights(other)
    assert options_affecting_weights(kept).roi_margin_frac == 0.05
    assert options_affecting_weights(kept) != options_affecting_weights(ALL)


def test_cache_key_is_that_of_0_1() -> None:
    """Weights that version 0.1 kept are still found: the digest was computed with it."""
    advice = json.loads(MANIFEST_0_1.read_text())["runtime_defaults"]
    facts = options_in_cache_key(PipelineOptions().with_defaults(advice))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    assert digest == "a9c3911e3101d29d45c9f775de92ae941b0a9aac43bd7c47c580c24f9dc09865"

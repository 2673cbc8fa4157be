from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpn.engines.adapt_entry import AdaptEntry
from mpn.engines.files import FileDigest
from mpn.engines.manifest import Manifest
from mpn.engines.spec import Role
from mpn.errors import EngineError
from mpn.runtime.adapt_options import AdaptOptions
from mpn.runtime.adaptation import (
    Decision,
    adapt_as_json,
    adaptable_roles,
    as_seen_in_training,
    decide,
    options_for,
)
from mpn.runtime.options import PipelineOptions
from tests.emulation.engines import fake_engine_set, nothing_found

ALL = PipelineOptions()


def manifest_with(*adaptable: Role, **advice: Any) -> Manifest:
    """A manifest of propagation and OSVOS engines; those named can be fine-tuned."""
    manifest = fake_engine_set(osvos=nothing_found, runtime_defaults=advice).manifest
    entry = AdaptEntry(
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


def decided(manifest: Manifest, **given: Any) -> Decision:
    rest: dict[str, Any] = {"must_adapt": False, "is_live": False, **given}
    adapt = rest.pop("adapt", AdaptOptions(steps=3))
    return decide(adapt, manifest, rest.pop("options", ALL), **rest)


@pytest.mark.parametrize(
    ("manifest", "options", "roles"),
    [
        (BOTH, ALL, ("propagation", "osvos")),
        (BOTH, PipelineOptions(osvos="off"), ("propagation",)),
        (BOTH, PipelineOptions(use_propagation=False), ("osvos",)),
        (manifest_with("osvos"), ALL, ("osvos",)),
        (NONE, ALL, ()),
    ],
)
def test_networks_that_can_learn_and_run_are_fine_tuned(
    manifest: Manifest, options: PipelineOptions, roles: tuple[Role, ...]
) -> None:
    assert adaptable_roles(manifest, options) == roles
    if roles:
        found = options_for(manifest, options, AdaptOptions(seed=5))
        assert found == AdaptOptions(seed=5, roles=roles)
        assert decided(manifest, options=options).options == AdaptOptions(steps=3, roles=roles)


def test_the_advice_of_the_manifest_decides_what_runs() -> None:
    advising = manifest_with("propagation", "osvos", osvos="off")
    found = decided(advising).options
    assert found is not None
    assert found.roles == ("propagation",)


def test_engines_that_cannot_learn_run_as_they_are_and_say_why() -> None:
    assert decided(NONE).options is None
    assert "the engines 'fake' have no graphs to fine-tune with" in decided(NONE).why_not
    only_osvos = decided(manifest_with("osvos"), options=PipelineOptions(osvos="off"))
    assert only_osvos == Decision(None, "no network that can be fine-tuned is in use")
    assert decided(BOTH, adapt=None) == Decision(None, "not wanted")


def test_what_must_be_done_and_cannot_is_an_error() -> None:
    with pytest.raises(EngineError, match="have no graphs to fine-tune with: export it again"):
        decided(NONE, must_adapt=True)
    with pytest.raises(EngineError, match="have no graphs"):
        options_for(NONE, ALL, AdaptOptions())


def test_a_live_source_is_not_kept_waiting_unless_it_must() -> None:
    assert decided(BOTH, is_live=True).options is None
    assert "live" in decided(BOTH, is_live=True).why_not
    assert decided(BOTH, is_live=True, must_adapt=True).options is not None


def test_what_decides_about_the_weights_is_told_and_where_they_are_kept_is_not() -> None:
    told = adapt_as_json(AdaptOptions(steps=3, seed=4, cache_dir=Path("kept")))
    assert (told["steps"], told["seed"], told["roles"]) == (3, 4, ["propagation", "osvos"])
    assert told["recipes"]["propagation"]["steps"] == 3
    assert told["recipes"]["propagation"]["size_px"] > 0
    assert "kept" not in str(told)
    assert told != adapt_as_json(AdaptOptions(steps=3, seed=5))


def test_weights_do_not_depend_on_what_follows_the_network() -> None:
    kept = PipelineOptions(size=360, roi_margin_frac=0.05, colour_weight=0.75)
    later = {"osvos": "off", "osvos_every": 5, "crf": True, "retrieve_area_frac": 0.2}
    other = PipelineOptions(size=360, roi_margin_frac=0.05, colour_weight=0.75, **later)
    assert as_seen_in_training(kept) == as_seen_in_training(other)
    assert as_seen_in_training(kept).roi_margin_frac == 0.05
    assert as_seen_in_training(kept) != as_seen_in_training(ALL)

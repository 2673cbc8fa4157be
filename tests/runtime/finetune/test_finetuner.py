from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn.engines.base import Engine
from mpn.engines.directory.entries import FinetuneEntry
from mpn.engines.directory.files import FileDigest
from mpn.engines.open import EngineSet
from mpn.engines.spec import Role
from mpn.errors import EngineError, InputError
from mpn.runtime.finetune import finetuner as module
from mpn.runtime.finetune.finetuner import FinetuneProgress, ObjectFinetuner
from mpn.runtime.options import FinetuneOptions, ResolvedOptions
from mpn.types import Float32Array
from tests.builders.clips import Square, squares_clip
from tests.emulation.engines import FakeEngine, fake_engine_set, fourth_channel, nothing_found
from tests.emulation.finetune import FakeFinetuneEngine

CLIP = squares_clip(
    [Square(1, (40, 40), 40, (0, 0)), Square(2, (84, 50), 30, (0, 0), channel=2)],
    size_hw=(120, 140),
    frames=1,
)
RGB, LABELS = CLIP.frames[0], CLIP.labels[0]
QUICK = FinetuneOptions(steps=3, size=65, batch=2)
ENTRY = FinetuneEntry(
    optimizer="sgd",
    settings={},
    state=("momentum",),
    graphs={"all": FileDigest("x_adapt.onnx", "0" * 64)},
    features={},
    tensors=(),
)


class World:
    """Fake engines and a record of all opened engines.

    Attributes:
        trained: The fake fine-tuning engines, in order.
        opened: Role, weights and engine of each fine-tuned engine that was opened.
        make: Creates the next fine-tuning engine.
    """

    def __init__(self) -> None:
        self.engines = adaptable(fake_engine_set(osvos=nothing_found))
        self.trained: list[FakeFinetuneEngine] = []
        self.opened: list[tuple[Role, Mapping[str, Float32Array], FakeEngine]] = []
        self.make: Callable[[Role], FakeFinetuneEngine] = FakeFinetuneEngine
        self.fail_to_open = 0

    def open_finetune_engine(
        self, directory: Path, manifest: Any, role: Role, **_: Any
    ) -> FakeFinetuneEngine:
        self.trained.append(self.make(role))
        return self.trained[-1]

    def open_object_engine(
        self, directory: Path, engines: EngineSet, role: Role, weights: Any, **given: Any
    ) -> Engine:
        assert engines.engines[role] is self.engines.engines[role]
        if self.fail_to_open:
            self.fail_to_open -= 1
            raise EngineError("weights do not fit")
        engine = FakeEngine(self.engines.engines[role].spec, fourth_channel)
        self.opened.append((role, weights, engine))
        return engine

    def finetuner(self, options: FinetuneOptions = QUICK, **given: Any) -> ObjectFinetuner:
        pipeline = given.pop("pipeline", ResolvedOptions())
        engines = given.pop("engines", self.engines)
        return ObjectFinetuner("engines", engines, options, pipeline, **given)


def adaptable(engines: EngineSet, *roles: Role) -> EngineSet:
    """Return the engines with a manifest that can fine-tune these roles (or all)."""
    entries = {
        role: replace(entry, adapt=ENTRY) if role in (roles or engines.manifest.roles) else entry
        for role, entry in engines.manifest.roles.items()
    }
    return replace(engines, manifest=replace(engines.manifest, roles=entries))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()
    monkeypatch.setattr(module, "open_finetune_engine", made.open_finetune_engine)
    monkeypatch.setattr(module, "open_object_engine", made.open_object_engine)
    yield made
    assert all(engine.is_closed for engine in made.trained)


def test_finetune_opens_engines_with_new_weights(world: World) -> None:
    with world.finetuner() as finetuner:
        engines = finetuner.finetune(RGB, LABELS, 1)
    assert list(engines) == ["propagation", "osvos"]
    assert [engine.role for engine in world.trained] == ["propagation", "osvos"]
    assert world.trained[0].batches == [(2, 4, 65, 65)] * 3
    assert world.trained[1].batches == [(2, 3, 64, 64)] * 3
    for trained, (role, weights, engine) in zip(world.trained, world.opened, strict=True):
        assert trained.role == role
        np.testing.assert_array_equal(weights["scale"], trained.history[3])
        assert weights["scale"] != 1
        assert engines[role] is engine
        assert not engine.is_closed  # the caller closes it


def test_result_is_reported(world: World) -> None:
    finetuner = world.finetuner()
    finetuner.finetune(RGB, LABELS, 2)
    first, second = finetuner.reports
    assert (first.object_id, first.role, first.scope) == (2, "propagation", "all")
    assert (first.is_finetuned, first.is_cached, first.steps, first.note) == (True, False, 3, "")
    assert first.first_loss == pytest.approx(np.mean(world.trained[0].losses))
    assert second.role == "osvos"
    as_json = finetuner.report_as_json()
    assert as_json[0]["role"] == "propagation"
    assert as_json[0]["steps"] == 3
    assert as_json[0]["first_loss"] == pytest.approx(first.first_loss, abs=1e-6)


def test_progress_is_reported_per_step(world: World) -> None:
    progress: list[FinetuneProgress] = []
    world.finetuner(replace(QUICK, roles=("osvos",)), on_progress=progress.append).finetune(
        RGB, LABELS, 2
    )
    assert [(p.object_id, p.role, p.step, p.steps) for p in progress] == [
        (2, "osvos", n, 3) for n in (1, 2, 3)
    ]
    assert progress[-1].eta_s == 0
    assert progress[0].eta_s > 0


def test_same_seed_gives_same_weights_and_another_differs(world: World) -> None:
    for seed in (1, 1, 2):
        world.finetuner(replace(QUICK, seed=seed, roles=("osvos",))).finetune(RGB, LABELS, 1)
    first, again, other = (trained.losses for trained in world.trained)
    assert first == again
    assert first != other


def test_objects_have_different_samples(world: World) -> None:
    finetuner = world.finetuner(replace(QUICK, roles=("osvos",)))
    finetuner.finetune(RGB, LABELS, 1)
    finetuner.finetune(RGB, LABELS, 2)
    assert world.trained[0].losses != world.trained[1].losses


def test_a_second_run_on_the_same_frame_costs_nothing(world: World, tmp_path: Path) -> None:
    kept = replace(QUICK, cache_dir=tmp_path / "cache")
    world.finetuner(kept).finetune(RGB, LABELS, 1)
    again = world.finetuner(kept)
    assert set(again.finetune(RGB, LABELS, 1)) == {"propagation", "osvos"}
    assert len(world.trained) == 2  # those of the first run
    assert [(r.is_cached, r.is_finetuned, r.seconds) for r in again.reports] == [
        (True, True, 0)
    ] * 2
    for before, after in zip(world.opened[:2], world.opened[2:], strict=True):
        np.testing.assert_array_equal(before[1]["scale"], after[1]["scale"])


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({}, 0),
        ({"threads": 1}, 0),
        ({"options": {"seed": 1}}, 2),
        ({"options": {"steps": 4}}, 2),
        ({"options": {"seconds": 1e5}}, 2),
        ({"options": {"learning_rate": 0.5}}, 2),
        ({"pipeline": ResolvedOptions(colour_weight=0.5)}, 1),  # OSVOS does not use it
        ({"rgb": RGB ^ np.uint8(1)}, 2),
        ({"labels": np.where(LABELS == 2, 0, LABELS).astype(np.uint8)}, 2),
    ],
)
def test_cached_weights_of_other_inputs_are_not_used(
    world: World, tmp_path: Path, changed: dict[str, Any], again: int
) -> None:
    kept = replace(QUICK, cache_dir=tmp_path)
    world.finetuner(kept).finetune(RGB, LABELS, 1)
    options = replace(kept, **changed.pop("options", {}))
    rgb, labels = changed.pop("rgb", RGB), changed.pop("labels", LABELS)
    world.finetuner(options, **changed).finetune(rgb, labels, 1)
    assert len(world.trained) == 2 + again


def test_other_weights_of_the_network_are_another_entry(world: World, tmp_path: Path) -> None:
    kept = replace(QUICK, cache_dir=tmp_path, roles=("propagation",))
    world.finetuner(kept).finetune(RGB, LABELS, 1)
    manifest = world.engines.manifest
    entry = replace(manifest.roles["propagation"], sha256="1" * 64)
    world.engines = replace(
        world.engines,
        manifest=replace(manifest, roles={**manifest.roles, "propagation": entry}),
    )
    world.finetuner(kept).finetune(RGB, LABELS, 1)
    assert len(world.trained) == 2


def test_damaged_entry_is_replaced_and_reported(world: World, tmp_path: Path) -> None:
    kept = replace(QUICK, cache_dir=tmp_path, roles=("osvos",))
    world.finetuner(kept).finetune(RGB, LABELS, 1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    finetuner = world.finetuner(kept)
    finetuner.finetune(RGB, LABELS, 1)
    (report,) = finetuner.reports
    assert (report.is_cached, report.steps) == (False, 3)
    assert "damaged and are computed again" in report.note
    third = world.finetuner(kept)
    third.finetune(RGB, LABELS, 1)
    assert third.reports[0].is_cached


def test_unfitting_cached_weights_are_replaced_and_reported(world: World, tmp_path: Path) -> None:
    kept = replace(QUICK, cache_dir=tmp_path, roles=("osvos",))
    world.finetuner(kept).finetune(RGB, LABELS, 1)
    world.fail_to_open = 1
    finetuner = world.finetuner(kept)
    assert finetuner.finetune(RGB, LABELS, 1)
    assert "do not fit" in finetuner.reports[0].note
    assert len(world.trained) == 2


def test_nonfinite_loss_is_reported_and_not_cached(world: World, tmp_path: Path) -> None:
    world.make = lambda role: FakeFinetuneEngine(role, bad_at=3)
    kept = replace(QUICK, cache_dir=tmp_path, roles=("osvos",))
    finetuner = world.finetuner(kept)
    assert "osvos" in finetuner.finetune(RGB, LABELS, 1)
    (report,) = finetuner.reports
    assert report.note == "stopped: loss not finite at step 3, weights of step 1 kept"
    assert (report.steps, report.is_finetuned) == (1, True)
    np.testing.assert_array_equal(world.opened[0][1]["scale"], world.trained[0].history[1])
    assert list(tmp_path.iterdir()) == []


def test_unchanged_network_stays_the_common_one(world: World) -> None:
    world.make = lambda role: FakeFinetuneEngine(role, bad_at=1, bad=math.inf)
    finetuner = world.finetuner()
    assert finetuner.finetune(RGB, LABELS, 1) == {}
    assert [report.is_finetuned for report in finetuner.reports] == [False, False]
    assert finetuner.report_as_json()[0]["first_loss"] is None


def test_finetune_too_small_object_uses_common_engines(world: World) -> None:
    labels = np.zeros_like(LABELS)
    labels[40:44, 40:44] = 5
    finetuner = world.finetuner()
    assert finetuner.finetune(RGB, labels, 5) == {}
    assert not world.trained
    assert all("object 5 has 16 pixels" in report.note for report in finetuner.reports)


def test_if_one_network_fails_the_other_is_closed(world: World) -> None:
    class Failing(FakeFinetuneEngine):
        def step(self, *_: Any) -> float:
            raise EngineError("out of memory")

    world.make = lambda role: (Failing if role == "osvos" else FakeFinetuneEngine)(role)
    with pytest.raises(EngineError, match="out of memory"):
        world.finetuner().finetune(RGB, LABELS, 1)
    assert [engine.is_closed for _, _, engine in world.opened] == [True]


def test_ctrl_c_leaves_nothing_open_and_nothing_half_written(world: World, tmp_path: Path) -> None:
    def interrupt(progress: FinetuneProgress) -> None:
        if progress.role == "osvos":
            raise KeyboardInterrupt

    finetuner = world.finetuner(replace(QUICK, cache_dir=tmp_path), on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        finetuner.finetune(RGB, LABELS, 1)
    assert all(engine.is_closed for _, _, engine in world.opened)
    assert len(list(tmp_path.iterdir())) == 1  # the network that was done
    assert world.finetuner(replace(QUICK, cache_dir=tmp_path)).finetune(RGB, LABELS, 1)


def test_network_without_finetuning_raises_at_once(world: World) -> None:
    engines = adaptable(fake_engine_set(osvos=nothing_found), "osvos")
    with pytest.raises(EngineError, match="the propagation network of the engines 'fake' cannot"):
        world.finetuner(engines=engines)
    with pytest.raises(EngineError, match="the osvos network"):
        world.finetuner(engines=adaptable(fake_engine_set()))


def test_arrays_that_do_not_fit_are_refused(world: World) -> None:
    with pytest.raises(InputError, match="the mask is"):
        world.finetuner().finetune(RGB, LABELS[1:], 1)
    with pytest.raises(InputError, match="must be"):
        world.finetuner().finetune(RGB[..., :2], LABELS, 1)


def test_finetuning_that_gets_worse_is_neither_used_nor_cached(
    world: World, tmp_path: Path
) -> None:
    """The rate is far too high: the loss grows with each step."""
    world.make = lambda role: Rising(role)
    finetuner = world.finetuner(replace(QUICK, steps=12, cache_dir=tmp_path))
    assert finetuner.finetune(RGB, LABELS, 1) == {}
    assert world.opened == []
    assert list(tmp_path.iterdir()) == []
    for report in finetuner.report_as_json():
        assert not report["finetuned"]
        assert report["last_loss"] > report["first_loss"]
        assert "the loss rose from" in report["note"]


class Rising(FakeFinetuneEngine):
    def step(self, inputs: Any, target: Any, learning_rate: float) -> float:
        super().step(inputs, target, learning_rate)
        return 0.1 * len(self.losses)


def test_cache_entry_that_lacks_a_tensor_is_not_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUICK, roles=("osvos",), cache_dir=tmp_path)
    world.finetuner(options).finetune(RGB, LABELS, 1)
    (again := world.finetuner(options)).finetune(RGB, LABELS, 1)
    assert [report.is_cached for report in again.reports] == [True]  # control
    tensors = tuple(SimpleNamespace(name=name, scopes=("all",)) for name in ("scale", "shift"))
    entry = SimpleNamespace(optimizer="sgd", trained=lambda scope: tensors)
    monkeypatch.setattr(module, "finetune_entry", lambda manifest, role: entry)
    (lacking := world.finetuner(options)).finetune(RGB, LABELS, 1)
    (report,) = lacking.reports
    assert (report.is_cached, report.is_finetuned) == (False, True)
    assert report.note == "the stored weights lack 'shift' and are computed again"

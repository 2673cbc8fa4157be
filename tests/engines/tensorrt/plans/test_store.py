from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpn._common.files import sha256_of_file
from mpn.cuda.device import CudaDevice
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.tensorrt.api import TrtBackend, load_trt
from mpn.engines.tensorrt.plans.listing import plan_reports
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.engines.tensorrt.plans.record import load_record, record_path
from mpn.engines.tensorrt.plans.store import Plan, PlanStore, user_plans_dir
from mpn.errors import BackendError, EngineError
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.driver import FakeDriver, install_driver
from tests.emulation.tensorrt import Flavour, install_tensorrt

NONE = BuildOptions()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_adapt_dir(tmp_path / "engines")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install_driver(monkeypatch)


def store_of(
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    driver: FakeDriver | None,
    flavour: Flavour = "11",
) -> PlanStore:
    install_tensorrt(monkeypatch, flavour, driver)
    backend: TrtBackend = "tensorrt-rtx" if flavour == "rtx" else "tensorrt"
    device = None if driver is None else CudaDevice()
    return PlanStore(directory, load_manifest(directory), load_trt(backend), device)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, directory: Path, driver: FakeDriver) -> PlanStore:
    return store_of(monkeypatch, directory, driver)


def test_plan_is_built_once_and_named_by_its_digest(store: PlanStore, directory: Path) -> None:
    first = store.plan("osvos", NONE)
    assert first.was_built
    assert first.note.startswith("osvos built from osvos.onnx in ")
    assert first.note.endswith("because none was built yet")
    digest8 = store.key("osvos", NONE).digest[:8]
    assert first.path == directory / "plans" / f"osvos-tensorrt-sm_90-11.4.0.106-{digest8}.plan"
    second = store.plan("osvos", NONE, build=False)
    assert not second.was_built
    assert second.data == first.data == first.path.read_bytes()
    assert second.note == f"osvos from {first.path.name}"
    record = load_record(first.path)
    assert record == second.record
    assert record.sha256 == sha256_of_file(first.path)
    assert (record.device, record.built_by) == ("Fake H200", "11.4.0.106")
    assert record.precision.network.arithmetic == 3
    assert not list(first.path.parent.glob(".*")), "nothing half-written is left"


def test_record_is_next_to_plan_and_manifest_unchanged(store: PlanStore, directory: Path) -> None:
    before = (directory / "manifest.json").read_bytes()
    plan = store.plan("osvos", NONE)
    assert (directory / "manifest.json").read_bytes() == before
    assert json.loads(record_path(plan.path).read_text())["schema_version"] == 1


def change_graph(directory: Path, store: PlanStore) -> None:
    path = directory / "manifest.json"
    value = json.loads(path.read_text())
    value["roles"]["osvos"]["sha256"] = "0" * 64
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("gpu model", "it was built on Fake H200 and this is Fake H100"),
        ("architecture", "it was built for sm_90 and this GPU is sm_80"),
        ("version", "it was built by version 11.4.0.106 and 10.14.1.48 is installed"),
        ("graph", "it was built from another graph"),
        ("weights", "it was built from another graph"),
        ("options", "it was built with other options"),
        ("content", "it has changed since it was built"),
        ("record", r"\.plan\.json is missing"),
        ("record content", r"\.plan\.json: invalid JSON"),
        ("record schema", "schema_version 9"),
        ("record field", r"field 'precision\.network\.layers' must be an integer, got '3'"),
        ("record key", "its digest is not that of its key"),
    ],
)
def test_store_rebuilds_unfit_plan_and_gives_reason(
    monkeypatch: pytest.MonkeyPatch, store: PlanStore, directory: Path, what: str, why: str
) -> None:
    plan = store.plan("osvos", NONE)
    options = NONE
    if what == "gpu model":
        store = store_of(monkeypatch, directory, install_driver(monkeypatch, name="Fake H100"))
    elif what == "architecture":
        driver = install_driver(monkeypatch, name="Fake A100", capability=(8, 0))
        store = store_of(monkeypatch, directory, driver)
    elif what == "version":
        store = store_of(monkeypatch, directory, install_driver(monkeypatch), "10")
    elif what in ("graph", "weights"):
        path = directory / "manifest.json"
        value = json.loads(path.read_text())
        entry = value["roles"]["osvos"]
        (entry if what == "graph" else entry["external_data"][0])["sha256"] = "0" * 64
        path.write_text(json.dumps(value))
        store = store_of(monkeypatch, directory, install_driver(monkeypatch))
    elif what == "options":
        options = BuildOptions(tf32=True)
    elif what == "content":
        plan.path.write_bytes(plan.data + b"x")
    else:
        damage_record(plan, what)
    with pytest.raises(BackendError, match=rf"(?s){why}.*leave --no-build away"):
        store.plan("osvos", options, build=False)
    again = store.plan("osvos", options)
    assert again.was_built
    assert f"because {plan.path.name} does not fit: " in again.note
    assert not store.plan("osvos", options, build=False).was_built


def damage_record(plan: Plan, what: str) -> None:
    path = record_path(plan.path)
    if what == "record":
        path.unlink()
        return
    value = json.loads(path.read_text())
    if what == "record content":
        path.write_text("{")
        return
    if what == "record schema":
        value["schema_version"] = 9
    elif what == "record field":
        value["precision"]["network"]["layers"] = "3"
    else:
        value["key"]["arch"] = "sm_100"
    path.write_text(json.dumps(value))


def test_a_plan_the_library_refused_is_built_again(store: PlanStore) -> None:
    store.plan("osvos", NONE)
    again = store.plan("osvos", NONE, rejected="it does not load")
    assert again.was_built
    assert again.note.endswith("because it does not load")
    with pytest.raises(BackendError, match=r"it does not load.*building was ruled out"):
        store.plan("osvos", NONE, build=False, rejected="it does not load")


def test_portable_plans_run_on_other_gpus(
    monkeypatch: pytest.MonkeyPatch, store: PlanStore, directory: Path
) -> None:
    portable = BuildOptions(hardware_compatible=True)
    name = store.plan("osvos", portable).path.name
    assert name.startswith("osvos-tensorrt-ampere+-")
    driver = install_driver(monkeypatch, name="Fake A10", capability=(8, 6))
    other = store_of(monkeypatch, directory, driver)
    assert other.plan("osvos", portable, build=False).path.name == name


def test_plans_for_rtx_built_without_a_gpu_fit_one(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    built = store_of(monkeypatch, directory, None, "rtx").plan("osvos", NONE)
    assert built.record.device == ""
    assert built.path.name.startswith("osvos-tensorrt-rtx-ampere+-1.7.1.116-")
    driver = install_driver(monkeypatch)
    found = store_of(monkeypatch, directory, driver, "rtx").plan("osvos", NONE, build=False)
    assert found.path == built.path
    turing = install_driver(monkeypatch, name="T4", capability=(7, 5))
    with pytest.raises(BackendError, match=r"built for ampere\+ and this GPU is sm_75"):
        store_of(monkeypatch, directory, turing, "rtx").plan("osvos", NONE, build=False)


def test_version_compatible_plans_are_keyed_by_the_major_version(store: PlanStore) -> None:
    key = store.key("osvos", BuildOptions(version_compatible=True))
    assert key.version == "11+"
    assert store.key("osvos", NONE).version == "11.4.0.106"


def test_digest_covers_all_inputs_of_a_plan(store: PlanStore) -> None:
    options = [
        NONE,
        BuildOptions(refittable=True),
        BuildOptions(half_inputs=True),
        BuildOptions(tf32=True),
        BuildOptions(optimization_level=5),
        BuildOptions(workspace_mib=10),
        BuildOptions(version_compatible=True),
        BuildOptions(hardware_compatible=True),
    ]
    digests = {
        store.key(role, given).digest for role in ("osvos", "propagation") for given in options
    }
    assert len(digests) == 2 * len(options)
    assert store.key("osvos", NONE).digest == store.key("osvos", BuildOptions()).digest


def test_store_read_only_directory_uses_cache(store: PlanStore, directory: Path) -> None:
    (directory / "plans").write_text("in the way")
    plan = store.plan("osvos", NONE)
    folder = user_plans_dir()
    assert folder is not None
    assert plan.path.parent == folder
    assert store.plan("osvos", NONE, build=False).path == plan.path


def test_plans_of_the_engines_that_ship_lie_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, store: PlanStore, directory: Path
) -> None:
    monkeypatch.setattr(
        "mpn.engines.directory.locate._weights_packages", lambda: [directory.parent]
    )
    assert store.plan("osvos", NONE).path.parent == user_plans_dir()
    assert not (directory / "plans").exists()
    (report,) = plan_reports(directory, load_manifest(directory))
    assert report.problem is None


def test_timing_cache_is_kept_for_the_next_build(store: PlanStore, directory: Path) -> None:
    store.plan("osvos", NONE)
    file = directory / "plans" / "timing-tensorrt-sm_90-11.4.0.106.cache"
    assert file.read_bytes() == b"learnt;"
    store.plan("propagation", NONE)
    assert file.read_bytes() == b"learnt;learnt;"


def test_a_build_that_fails_leaves_no_file(store: PlanStore, directory: Path) -> None:
    store.api.module.behaviour.refuse.add("build_serialized_network")
    with pytest.raises(EngineError, match="is set to fail"):
        store.plan("osvos", NONE)
    assert not (directory / "plans").exists()


def test_plans_are_listed_with_their_problems(store: PlanStore, directory: Path) -> None:
    manifest = load_manifest(directory)
    assert plan_reports(directory, manifest) == ()
    good = store.plan("osvos", NONE)
    changed = store.plan("osvos", BuildOptions(tf32=True))
    changed.path.write_bytes(b"x")
    (directory / "plans" / "stray.plan").write_bytes(b"x")
    problems = {report.path.name: report.problem for report in plan_reports(directory, manifest)}
    assert problems == {
        good.path.name: None,
        changed.path.name: "changed since it was built",
        "stray.plan": "stray.plan.json is missing",
    }
    other = make_adapt_dir(directory.parent / "other", precision="fp16")
    (reports,) = [plan_reports(directory, load_manifest(other))]
    assert {report.problem for report in reports if report.record} == {"built from another graph"}


def test_plan_of_another_user_in_the_cache_is_built_again(
    store: PlanStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_folders", lambda: (user_plans_dir(),))
    path = store.plan("osvos", NONE).path
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not store.plan("osvos", NONE).was_built  # control
    monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)
    again = store.plan("osvos", NONE)
    assert again.was_built
    assert "belongs to another user" in again.note

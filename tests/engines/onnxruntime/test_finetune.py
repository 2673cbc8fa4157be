from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mpn._common.files import sha256_of_file
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import Manifest, load_manifest
from mpn.engines.onnxruntime.finetune import FinetuneEngine, open_finetune_engine
from mpn.engines.spec import Role
from mpn.errors import BackendError, EngineError, InputError, ManifestError
from mpn.types import Float32Array
from tests.builders.finetune_dirs import ROLES, make_adapt_dir, tiny_forward
from tests.test_lean_imports import BLOCKED_ALWAYS, run_blocked
from tests.tolerances import HALF_STEP, HALF_STEP_OF_SCALED

CHANNELS: Mapping[Role, int] = {"propagation": 4, "osvos": 3}
RATE: Mapping[Role, float] = {"propagation": 1e-2, "osvos": 1e-1}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("adapt") / "engines")


@pytest.fixture(scope="module")
def manifest(directory: Path) -> Manifest:
    return load_manifest(directory)


def example(
    role: Role, shape: tuple[int, int, int] = (2, 17, 22), seed: int = 0
) -> tuple[Float32Array, Float32Array]:
    """Noise, brighter where the object is."""
    images, height, width = shape
    rng = np.random.default_rng(seed)
    target = np.zeros((images, 1, height, width), np.float32)
    target[:, :, height // 4 : height // 2, width // 3 : 2 * width // 3] = 1.0
    noise = rng.standard_normal((images, CHANNELS[role], height, width), np.float32)
    return noise + 2 * target, target


def opened(directory: Path, manifest: Manifest, role: Role, **options: Any) -> FinetuneEngine:
    return open_finetune_engine(directory, manifest, role, threads=1, **options)


def same(left: Mapping[str, Float32Array], right: Mapping[str, Float32Array]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("role", ROLES)
def test_it_begins_with_the_weights_of_the_directory(
    directory: Path, manifest: Manifest, role: Role
) -> None:
    with opened(directory, manifest, role) as engine:
        assert same(engine.weights(), dict(tiny_forward(role).weights))
        assert (engine.role, engine.scope) == (role, "all")
        assert engine.optimizer == {"propagation": "adamw", "osvos": "sgd"}[role]


@pytest.mark.parametrize("role", ROLES)
def test_the_loss_falls_for_any_size_and_batch(
    directory: Path, manifest: Manifest, role: Role
) -> None:
    with opened(directory, manifest, role) as engine:
        losses = [engine.step(*example(role), RATE[role]) for _ in range(30)]
        assert losses[-1] < 0.7 * losses[0]
        assert np.isfinite(engine.step(*example(role, (1, 40, 9)), RATE[role]))
        assert np.isfinite(engine.step(*example(role, (5, 8, 8)), RATE[role]))


def test_a_rate_of_zero_changes_nothing(directory: Path, manifest: Manifest) -> None:
    with opened(directory, manifest, "osvos") as engine:
        before = engine.weights()
        first = engine.step(*example("osvos"), 0.0)
        assert same(engine.weights(), before)
        assert engine.step(*example("osvos"), 0.1) == first  # the loss is that before the step
        assert not same(engine.weights(), before)


def test_weights_are_copies(directory: Path, manifest: Manifest) -> None:
    with opened(directory, manifest, "osvos") as engine:
        before = engine.weights()
        kept = {name: values.copy() for name, values in before.items()}
        for _ in range(4):
            engine.step(*example("osvos"), 0.1)
        assert same(before, kept)
        before["fuse.bias"][:] = 99.0
        assert not (engine.weights()["fuse.bias"] == 99.0).any()


@pytest.mark.parametrize("role", ROLES)
def test_beginning_again_forgets_steps_and_momentum(
    directory: Path, manifest: Manifest, role: Role
) -> None:
    def losses(engine: FinetuneEngine) -> list[float]:
        return [engine.step(*example(role), RATE[role]) for _ in range(5)]

    with opened(directory, manifest, role) as engine:
        first = losses(engine)
        on = losses(engine)
        engine.begin()
        assert losses(engine) == first
        assert on != first  # control: five more steps are not the first five
        adapted = engine.weights()
        engine.begin(adapted)
        assert same(engine.weights(), adapted)
        assert losses(engine) != first


def test_two_engines_do_not_share_state(directory: Path, manifest: Manifest) -> None:
    with (
        opened(directory, manifest, "osvos") as one,
        opened(directory, manifest, "osvos") as other,
    ):
        one.step(*example("osvos"), 0.1)
        assert same(other.weights(), dict(tiny_forward("osvos").weights))


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(
    directory: Path, manifest: Manifest
) -> None:
    with opened(directory, manifest, "osvos") as engine:
        weights = [engine.weights()]
        for _ in range(3):
            engine.step(*example("osvos"), 0.1)
            weights.append(engine.weights())
        assert np.isfinite(engine.step(*example("osvos"), 1e38))  # this one breaks the weights
        assert not same(engine.weights(), weights[3])
        assert not np.isfinite(engine.step(*example("osvos"), 0.1))
        assert same(engine.weights(), weights[3])
        with pytest.raises(EngineError, match="was not finite: begin again"):
            engine.step(*example("osvos"), 0.1)
        engine.begin()
        assert same(engine.weights(), weights[0])
        assert np.isfinite(engine.step(*example("osvos"), 0.1))


def test_weights_that_are_not_finite_are_never_given(directory: Path, manifest: Manifest) -> None:
    inputs, target = example("osvos")
    with opened(directory, manifest, "osvos") as engine:
        before = engine.weights()
        assert np.isfinite(engine.step(np.float32(1e6) * inputs, target, 3e38))
        assert same(engine.weights(), before)


def test_first_non_finite_loss_keeps_initial_weights(directory: Path, manifest: Manifest) -> None:
    with opened(directory, manifest, "osvos") as engine:
        broken = {name: values * np.float32(1e30) for name, values in engine.weights().items()}
        engine.begin(broken)
        assert not np.isfinite(engine.step(*example("osvos"), 0.1))
        assert same(engine.weights(), broken)


def test_a_mask_without_object_trains_nothing_and_breaks_nothing(
    directory: Path, manifest: Manifest
) -> None:
    with opened(directory, manifest, "osvos") as engine:
        inputs, target = example("osvos")
        for value in (0.0, 1.0):
            assert engine.step(inputs, np.full_like(target, value), 0.1) == 0.0
        weights = engine.weights()
        assert all(np.isfinite(values).all() for values in weights.values())


@pytest.mark.parametrize("role", ROLES)
def test_head_step_trains_the_head_with_the_whole_loss(
    directory: Path, manifest: Manifest, role: Role
) -> None:
    trunk = {"propagation": "backbone.", "osvos": "stages."}[role]
    inputs, target = example(role)
    with opened(directory, manifest, role, scope="head") as engine:
        names = set(engine.weights())
        assert names == {name for name in tiny_forward(role).weights if not name.startswith(trunk)}
        losses = [engine.step(inputs, target, RATE[role]) for _ in range(10)]
        assert losses[-1] < losses[0]
        # The loss is that of the whole network.
        with opened(directory, manifest, role) as whole:
            assert whole.step(inputs, target, 0.0) == pytest.approx(losses[0], rel=1e-6)


def _nan(array: Float32Array) -> Float32Array:
    broken = array.copy()
    broken.flat[3] = np.nan
    return broken


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, t: (_nan(x), t, 0.1), "inputs must be finite"),
        (lambda x, t: (x, _nan(t), 0.1), "target must be finite"),
        (lambda x, t: (x.astype(np.float64), t, 0.1), "inputs must be float32 .* got float64"),
        (lambda x, t: (x[0], t, 0.1), "inputs must be float32 with 4 axes"),
        (lambda x, t: (x[:0], t[:0], 0.1), "must be float32 with 4 axes"),
        (lambda x, t: (x[:1], t, 0.1), "differ in images, height or width"),
        (lambda x, t: (x, t[..., :-1], 0.1), "differ in images, height or width"),
        (lambda x, t: (x, t[:, 0], 0.1), "target must be float32 with 4 axes"),
        (lambda x, t: (x, 255 * t, 0.1), "of 0..1"),
        (lambda x, t: (x, t.repeat(2, 1), 0.1), r"must be \(N, 1, H, W\)"),
        (lambda x, t: (x, t, float("nan")), "learning rate must be 0 or more, got nan"),
        (lambda x, t: (x, t, -1.0), "learning rate must be 0 or more"),
        (lambda x, t: (x.repeat(2, 1), t, 0.1), "failed on cpu"),
    ],
)
def test_wrong_input_raises_and_changes_nothing(
    directory: Path, manifest: Manifest, change: Any, says: str
) -> None:
    with opened(directory, manifest, "osvos") as engine:
        before = engine.weights()
        with pytest.raises(EngineError, match=says) as info:
            engine.step(*change(*example("osvos")))
        assert "\n" not in str(info.value)
        assert same(engine.weights(), before)
        assert np.isfinite(engine.step(*example("osvos"), 0.1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("fuse.bias"), r"'fuse.bias' is missing \(1 of 6 are\)"),
        (lambda w: w.update(more=w["fuse.bias"]), "'more' is not one of the 6"),
        (lambda w: w.update({"fuse.bias": np.zeros(2, np.float32)}), r"must be float32 \(1,\)"),
        (lambda w: w.update({"fuse.bias": np.zeros(1)}), "got float64"),
        (lambda w: w.update({"fuse.bias": np.full(1, np.inf, np.float32)}), "is not finite"),
    ],
)
def test_weights_to_begin_with_are_checked(
    directory: Path, manifest: Manifest, change: Any, says: str
) -> None:
    with opened(directory, manifest, "osvos") as engine:
        weights = engine.weights()
        change(weights)
        with pytest.raises(EngineError, match=says):
            engine.begin(weights)


def test_closed_engine_raises(directory: Path, manifest: Manifest) -> None:
    engine = opened(directory, manifest, "osvos")
    engine.close()
    engine.close()
    for call in (engine.weights, engine.begin, lambda: engine.step(*example("osvos"), 0.1)):
        with pytest.raises(EngineError, match="is closed"):
            call()
    assert "closed" in repr(engine)


def test_role_without_finetune_graph_raises(directory: Path, manifest: Manifest) -> None:
    with pytest.raises(EngineError, match="has no flow engine"):
        opened(directory, manifest, "flow")
    entry = manifest.roles["osvos"]
    without = dataclasses.replace(
        manifest, roles={**manifest.roles, "osvos": dataclasses.replace(entry, adapt=None)}
    )
    with pytest.raises(EngineError, match="without its fine-tuning step: export it again"):
        opened(directory, without, "osvos")
    assert entry.adapt is not None
    only_all = dataclasses.replace(
        entry.adapt, graphs={"all": entry.adapt.graphs["all"]}, features={}
    )
    narrow = dataclasses.replace(
        manifest, roles={**manifest.roles, "osvos": dataclasses.replace(entry, adapt=only_all)}
    )
    with pytest.raises(EngineError, match="in scope 'head', only in all"):
        opened(directory, narrow, "osvos", scope="head")
    with pytest.raises(InputError, match="threads must be a number of threads of at least 1"):
        open_finetune_engine(directory, manifest, "osvos", threads=0)


@pytest.mark.parametrize(
    "name", ["osvos_adapt_head.onnx", "osvos_features.onnx", "osvos.onnx.data"]
)
def test_a_file_that_changed_since_export_is_refused(tmp_path: Path, name: str) -> None:
    directory = make_adapt_dir(tmp_path / "engines")
    manifest = load_manifest(directory)
    with (directory / name).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(ManifestError, match=f"{name} .* has changed since export"):
        opened(directory, manifest, "osvos", scope="head")
    with opened(directory, manifest, "propagation", scope="head"):
        pass  # control: the other role's files are whole


def test_the_graph_of_another_role_is_refused(tmp_path: Path) -> None:
    directory = make_adapt_dir(tmp_path / "engines")
    manifest = load_manifest(directory)
    wrong = directory / "osvos_adapt.onnx"
    wrong.write_bytes((directory / "propagation_adapt.onnx").read_bytes())
    entry = manifest.roles["osvos"]
    assert entry.adapt is not None
    graphs = {**entry.adapt.graphs, "all": FileDigest(wrong.name, sha256_of_file(wrong))}
    adapt = dataclasses.replace(entry.adapt, graphs=graphs)
    roles = {**manifest.roles, "osvos": dataclasses.replace(entry, adapt=adapt)}
    with pytest.raises(EngineError, match="is not the fine-tuning graph of this manifest"):
        opened(directory, dataclasses.replace(manifest, roles=roles), "osvos")


def test_a_backend_that_is_not_there_is_an_error(directory: Path, manifest: Manifest) -> None:
    from mpn.engines.onnxruntime.engine import why_no_cuda

    if why_no_cuda() is None:
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match="cuda was requested"):
        open_finetune_engine(directory, manifest, "osvos", backend="cuda")


def test_the_graphs_hold_no_weights(directory: Path, manifest: Manifest) -> None:
    for role in ROLES:
        entry = manifest.roles[role].adapt
        assert entry is not None
        names = {tensor.name for tensor in entry.tensors}
        for file in entry.files:
            graph = onnx.load(directory / file.path).graph
            assert names.isdisjoint(tensor.name for tensor in graph.initializer)


def test_a_half_directory_begins_with_its_weights_unscaled(tmp_path: Path) -> None:
    directory = make_adapt_dir(tmp_path / "engines", precision="fp16")
    manifest = load_manifest(directory)
    with opened(directory, manifest, "osvos") as engine:
        for name, values in engine.weights().items():
            expected = tiny_forward("osvos").weights[name]
            np.testing.assert_allclose(values, expected, HALF_STEP, HALF_STEP_OF_SCALED)


def test_fine_tuning_needs_neither_torch_nor_onnx(directory: Path) -> None:
    code = (
        "import numpy as np\n"
        "from mpn.engines.onnxruntime.finetune import open_finetune_engine\n"
        "from mpn.engines.directory.manifest import load_manifest\n"
        "from mpn.engines.onnxruntime.reweight import open_finetuned_engine\n"
        f"directory = {str(directory)!r}\n"
        "manifest = load_manifest(directory)\n"
        "with open_finetune_engine(directory, manifest, 'osvos', threads=1) as engine:\n"
        "    target = np.zeros((1, 1, 8, 8), np.float32)\n"
        "    target[..., 2:5] = 1\n"
        "    engine.step(np.ones((1, 3, 8, 8), np.float32), target, 0.1)\n"
        "    weights = engine.weights()\n"
        "with open_finetuned_engine(directory, manifest, 'osvos', weights, threads=1) as adapted:\n"
        "    print(len(adapted.changed))\n"
    )
    done = run_blocked(code, BLOCKED_ALWAYS)
    assert done.stdout.strip() == "6", done.stderr

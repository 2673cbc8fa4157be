"""The Ray runner hands out units, replaces actors that end, and stops."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from mpn import __version__
from mpn.batch.batch import run_batch
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.plan import AttemptQueue, Plan, PlannedUnit
from mpn.batch.runners.ray_cluster import RayCluster, Resources, _fitting, _reason
from mpn.batch.runners.ray_runner import RayRunner, ray_runner
from mpn.errors import EngineError, InputError, ManifestError, MissingExtraError, MpnError
from mpn.runtime.run_options import RunOptions

Run = Callable[[dict[str, Any]], Any]


class LostError(Exception):
    """An actor ended."""


class FakeCluster:
    """A cluster whose calls return at once; ``run`` computes the results of attempts."""

    def __init__(self, run: Run, *, room: int = 2, gpus: bool = False) -> None:
        self.run, self.room, self.gpus = run, room, gpus
        self.version = __version__
        self.sent: list[dict[str, Any]] = []
        self.actors: list[str] = []
        self.names: list[str] = []
        self.killed: list[str] = []
        self.stopped: list[str] = []
        self.fails_to_start = False

    def has_gpus(self) -> bool:
        return self.gpus

    def capacity(self, need: Resources) -> int:
        return self.room

    def start(self, settings: dict[str, Any], name: str, need: Resources) -> str:
        self.sent.append(settings)
        self.names.append(name)
        self.actors.append(f"actor-{len(self.actors) + 1}")
        return self.actors[-1]

    def call(self, actor: str, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if method == "describe":
            if self.fails_to_start:
                future.set_exception(LostError("no module named mpn"))
            else:
                future.set_result({"version": self.version, "name": actor, "host": "node-a"})
        elif method == "run":
            self.sent.append(arguments[0])
            try:
                future.set_result(self.run(arguments[0]))
            except LostError as error:
                future.set_exception(error)
        elif method == "progress":
            future.set_result({})
        else:
            self.stopped.append(actor)
            future.set_result(None)
        return future

    def lost_reason(self, error: BaseException) -> str | None:
        return str(error) if isinstance(error, LostError) else None

    def kill(self, actor: str) -> None:
        self.killed.append(actor)


def done(attempt: dict[str, Any]) -> dict[str, Any]:
    outcome = UnitOutcome(
        name=attempt["unit"]["name"], state="done", frames=3, attempt=attempt["number"]
    )
    return {"type": "outcome", "outcome": outcome.as_json()}


def units(count: int) -> list[Unit]:
    return [
        Unit(name=f"v{index}", video=f"v{index}.mp4", masks={None: "m.png"}, out=f"out/v{index}")
        for index in range(count)
    ]


def outcomes(cluster: FakeCluster, count: int) -> list[UnitOutcome]:
    runner = ray_runner(cluster, Settings(), count)
    return list(runner.run(AttemptQueue(units(count)), lambda progress: None))


def test_ray_runner_returns_each_unit_once() -> None:
    cluster = FakeCluster(done)
    assert sorted(one.name for one in outcomes(cluster, 5)) == [f"v{index}" for index in range(5)]
    assert len(cluster.actors) == 2  # the engines of an actor stay open
    assert cluster.killed == cluster.actors


def test_ray_runner_sends_small_json_with_absolute_paths() -> None:
    cluster = FakeCluster(done)
    [unit] = units(1)
    unit = Unit(
        name="v", video="s3://b/v.mp4", masks={3: "m.png"}, out="o",
        options=RunOptions(finetune_cache="cache"),
    )  # fmt: skip
    settings = Settings(engine_dir="engines")
    runner = ray_runner(cluster, settings, 1)
    list(runner.run(AttemptQueue([unit]), lambda progress: None))
    sent, attempt = cluster.sent
    assert sent == {**settings.as_json(), "threads": 1, "engine_dir": os.path.abspath("engines")}
    assert len(json.dumps(cluster.sent)) < 4000
    received = Unit.from_json(json.loads(json.dumps(attempt["unit"])))
    assert received.video == "s3://b/v.mp4"
    assert received.masks == {3: os.path.abspath("m.png")}
    assert received.out == os.path.abspath("o")
    assert received.options.finetune_cache == os.path.abspath("cache")


def test_ray_runner_replaces_a_lost_actor_and_runs_again() -> None:
    """A unit of a lost node has a second attempt, in another actor."""
    seen: list[tuple[str, int]] = []

    def run(attempt: dict[str, Any]) -> dict[str, Any]:
        seen.append((attempt["unit"]["name"], attempt["number"]))
        if seen[-1] == ("v1", 1):
            raise LostError("its node was lost")
        return done(attempt)

    cluster = FakeCluster(run, room=1)
    plan = Plan(tuple(PlannedUnit(unit, "", None) for unit in units(3)), ())
    state = run_batch(plan, ray_runner(cluster, Settings(), 3), retry=1)
    assert sorted(state.done) == ["v0", "v1", "v2"]
    assert not state.failed
    assert seen == [("v0", 1), ("v1", 1), ("v2", 1), ("v1", 2)]
    assert cluster.actors == ["actor-1", "actor-2"]
    assert cluster.names == ["worker-1", "worker-1"]  # the actor adds its node


def test_ray_runner_without_retry_has_the_reason() -> None:
    def run(attempt: dict[str, Any]) -> dict[str, Any]:
        return {"type": "lost", "reason": "SIGKILL"}

    [outcome] = outcomes(FakeCluster(run), 1)
    assert (outcome.state, outcome.may_retry) == ("failed", True)
    assert outcome.reason == "its worker ended: SIGKILL"
    assert outcome.worker == "actor-1"


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        ({"class": "ManifestError", "message": "no engines"}, ManifestError, "actor-1: no engines"),
        ({"class": "Other", "message": "broken"}, EngineError, "actor-1: broken"),
    ],
)
def test_ray_runner_raises_what_stops_all_units(
    event: dict[str, Any], error: type[MpnError], message: str
) -> None:
    with pytest.raises(error, match=message):
        outcomes(FakeCluster(lambda attempt: {"type": "fatal", **event}), 2)


def test_ray_runner_refuses_another_version_on_a_node() -> None:
    cluster = FakeCluster(done)
    cluster.version = "0.0.1"
    with pytest.raises(InputError, match=r"node node-a has mpn-runtime 0\.0\.1, this machine has"):
        outcomes(cluster, 2)
    assert cluster.killed == cluster.actors


def test_ray_runner_gives_up_if_no_actor_starts() -> None:
    cluster = FakeCluster(done)
    cluster.fails_to_start = True
    with pytest.raises(EngineError, match="no worker starts on the Ray cluster: no module named"):
        outcomes(cluster, 2)
    assert len(cluster.actors) <= 8


def test_ray_runner_closed_stops_and_ends_actors() -> None:
    cluster = FakeCluster(done)
    runner = RayRunner(cluster, Settings(), 2, need=Resources())
    generator = runner.run(AttemptQueue(units(6)), lambda progress: None)
    next(generator)
    generator.close()
    assert cluster.stopped  # the other worker had an attempt
    assert cluster.killed == cluster.actors


def test_ray_runner_counts_workers_by_room_and_videos() -> None:
    cluster = FakeCluster(done, room=3)
    assert ray_runner(cluster, Settings(), 2).workers == 2
    assert ray_runner(cluster, Settings(), 9).workers == 3
    assert ray_runner(cluster, Settings(), 9, workers=5).workers == 5
    with pytest.raises(InputError, match="no node of the Ray cluster has 4 CPUs, 900 MB of memory"):
        ray_runner(FakeCluster(done, room=0), Settings(threads=4), 1)
    with pytest.raises(InputError, match="has 1 CPU, 1 GPU"):
        ray_runner(FakeCluster(done, room=0, gpus=True), Settings(), 1)


def test_fitting_counts_the_scarcest_resource() -> None:
    node = {"CPU": 8.0, "memory": 3.5e9}
    assert _fitting(node, Resources(cpus=1)) == 8
    assert _fitting(node, Resources(cpus=3)) == 2
    assert _fitting(node, Resources(cpus=1, memory_bytes=10**9)) == 3
    assert _fitting(node, Resources(cpus=1, gpus=1)) == 0


def test_reason_of_ray_errors_is_one_line() -> None:
    mismatch = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.10.2\n"
        "This process on node was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    assert _reason(mismatch) == (
        "it has Ray 2.9.0, Python 3.10.2, this machine has Ray 2.60.0, Python 3.11.7: "
        "install the same versions"
    )
    assert "\n" not in _reason(RuntimeError("one\ntwo"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "there is no Ray cluster at 127.0.0.1:9 "),
        ("cluster", "--address takes HOST:PORT, ray://HOST:PORT or auto, not 'cluster'"),
        ("ray://host", "--address takes HOST:PORT"),
    ],
)
def test_ray_cluster_at_a_wrong_address_raises(
    monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", os)  # nothing of Ray is called before the check
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with pytest.raises(InputError, match=message):
        RayCluster(address)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_ray_cluster_that_refuses_names_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address, Ray sends no token unless RAY_AUTH_MODE is set."""

    def init(**options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at here")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="set RAY_AUTH_MODE=token"):
            RayCluster(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(InputError, match=r"Failed to connect to Ray cluster at here$"):
            RayCluster(address)


def test_ray_cluster_without_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(MissingExtraError, match=r"mpn batch --runner ray needs .*\[ray\]"):
        RayCluster("127.0.0.1:9")


def test_unit_completed_by_a_lost_actor_counts_as_done() -> None:
    """The node was lost after done.json, so the second attempt skips."""

    def run(attempt: dict[str, Any]) -> dict[str, Any]:
        if attempt["number"] == 1:
            raise LostError("its node was lost")
        outcome = UnitOutcome(name=attempt["unit"]["name"], state="skipped", frames=3, attempt=2)
        return {"type": "outcome", "outcome": outcome.as_json()}

    plan = Plan(tuple(PlannedUnit(unit, "", None) for unit in units(1)), ())
    state = run_batch(plan, ray_runner(FakeCluster(run), Settings(), 1), retry=1)
    assert (len(state.done), state.frames, state.skipped) == (1, 3, [])

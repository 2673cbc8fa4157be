from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from mpn.masks import load_labels, save_labels
from mpn.studio.app import Studio
from mpn.studio.events import Event
from mpn.types import UInt8Array
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels
from tests.studio.conftest import FRAMES
from tests.studio.servers import body_of


def put(
    client: TestClient, index: int, labels: UInt8Array, etag: str = "none", page: str = "a"
) -> tuple[int, dict[str, str]]:
    response = client.put(
        f"/api/masks/{index}",
        content=body_of(labels),
        headers={"if-match": f'"{etag}"', "x-page": page},
    )
    return response.status_code, response.json()


def test_state_has_what_the_page_needs(client: TestClient) -> None:
    state = client.get("/api/state").json()
    assert state["video"]["frames"] == FRAMES
    assert (state["video"]["height"], state["video"]["width"]) == SCENE_HW
    assert len(state["palette"]) == 256
    assert (state["drawn"], state["pending"], state["run"]["state"]) == ({}, [], "idle")


def test_frame_is_that_of_the_video(client: TestClient) -> None:
    frames = list(scene(FRAMES))
    for index in (5, 0, 11):
        response = client.get(f"/api/frames/{index}/3")
        assert response.headers["content-type"] == "image/jpeg"
        shown = np.array(Image.open(io.BytesIO(response.content)).convert("RGB")).astype(int)
        errors = [np.abs(shown - frame).mean() for frame in frames]
        assert int(np.argmin(errors)) == index


def test_saved_mask_is_what_was_sent(client: TestClient, studio: Studio) -> None:
    labels = np.random.default_rng(0).integers(0, 255, SCENE_HW).astype(np.uint8)
    status, body = put(client, 3, labels)
    assert status == 200
    path = studio.project.folder / "00003.png"
    np.testing.assert_array_equal(np.array(Image.open(path)), labels)
    response = client.get("/api/masks/3")
    assert response.headers["x-mask-source"] == "drawn"
    assert response.headers["etag"] == f'"{body["etag"]}"'
    np.testing.assert_array_equal(np.frombuffer(response.content, np.uint8), labels.ravel())
    state = client.get("/api/state").json()
    assert (state["drawn"], state["pending"]) == ({"3": body["etag"]}, [3])


def test_second_page_cannot_overwrite_unseen_mask(client: TestClient) -> None:
    first = np.zeros(SCENE_HW, np.uint8)
    first[2:9] = 1
    second = first * 2
    _, saved = put(client, 0, first)
    status, body = put(client, 0, second, etag="none", page="b")
    assert (status, body["etag"]) == (412, saved["etag"])
    assert client.get("/api/masks/0").content == first.tobytes()
    assert put(client, 0, second, etag=saved["etag"], page="b")[0] == 200
    assert client.get("/api/masks/0").content == second.tobytes()
    stale = client.delete("/api/masks/0", headers={"if-match": f'"{saved["etag"]}"'})
    assert stale.status_code == 412


def test_mask_of_another_size_or_id_is_refused(client: TestClient) -> None:
    assert put(client, 0, np.zeros((4, 5), np.uint8))[0] == 409
    assert put(client, 0, np.full(SCENE_HW, 255, np.uint8))[0] == 409
    whole = body_of(np.ones(SCENE_HW, np.uint8))
    for damaged in (
        b"",
        whole[:-1],
        whole + b"\1",
        b"\xff" * 9,
        b"\1\0\0\0\1" + b"\xff" * 5 + b"\1",
    ):
        response = client.put("/api/masks/0", content=damaged, headers={"if-match": "*"})
        assert response.status_code == 409
    assert client.get("/api/state").json()["drawn"] == {}


def test_names_and_directions_are_kept(client: TestClient) -> None:
    put(client, 4, np.ones(SCENE_HW, np.uint8))
    response = client.put("/api/names/2", json={"name": "  ball  "})
    assert response.json()["names"] == {"2": "ball"}
    response = client.put("/api/directions/4", json={"direction": "backward"})
    assert response.json()["directions"] == {"4": "backward"}
    assert client.put("/api/directions/4", json={"direction": "up"}).status_code == 422
    assert client.put("/api/names/0", json={"name": "x"}).status_code == 409
    assert client.put("/api/names/1", json={"name": "x" * 61}).status_code == 409
    client.put("/api/names/2", json={"name": ""})
    client.delete("/api/masks/4", headers={"if-match": "*"})
    state = client.get("/api/state").json()
    assert (state["names"], state["directions"]) == ({}, {})


def test_run_without_a_mask_is_refused(client: TestClient) -> None:
    assert client.post("/api/run", json={}).status_code == 409
    put(client, 0, np.zeros(SCENE_HW, np.uint8))
    response = client.post("/api/run", json={})
    assert response.status_code == 409
    assert "no object is drawn" in response.json()["message"]


def test_run_gives_the_masks_of_mpn_run(
    client: TestClient, studio: Studio, clip: Path, engine_dir: Path, tmp_path: Path
) -> None:
    from mpn.runtime.session.request import RunRequest
    from mpn.runtime.session.session import run_video

    labels = scene_labels(0)
    put(client, 0, labels)
    assert client.post("/api/run", json={}).json()["state"] == "running"
    assert client.post("/api/run", json={}).status_code == 409
    studio.runner.wait()
    assert studio.runner.status["state"] == "complete", studio.runner.status
    save_labels(tmp_path / "first.png", labels)
    run_video(
        RunRequest(
            video=str(clip),
            masks={None: tmp_path / "first.png"},
            out=tmp_path / "expected",
            engine_dir=engine_dir,
        )
    )
    for index in range(FRAMES):
        name = f"masks/{index:05d}.png"
        expected = load_labels(tmp_path / "expected" / name, allow_empty=True)
        got = load_labels(studio.project.out / name, allow_empty=True)
        np.testing.assert_array_equal(got, expected)
    tracks = client.get("/api/tracks").json()
    assert [entry["frame"] for entry in tracks["frames"]] == list(range(FRAMES))
    state = client.get("/api/state").json()
    assert (list(state["drawn"]), state["pending"]) == (["0"], [])
    assert client.get("/api/masks/0").headers["x-mask-source"] == "result"
    client.put("/api/names/1", json={"name": "koi"})
    report = json.loads((studio.project.out / "run.json").read_text())
    assert (report["state"], report["object_names"]) == ("complete", {"1": "koi"})


def test_run_from_a_frame_shows_only_changed_frames(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames before the correction are kept, and no event names them."""
    put(client, 0, scene_labels(0))
    client.post("/api/run", json={})
    studio.runner.wait()
    kept = {index: studio.project.result_path(index).read_bytes() for index in range(7)}
    review = studio.project.paths.review
    assert not review.exists()
    earlier = '<meta name="generator" content="mpn-runtime review">'
    review.write_text(earlier)
    events: list[Event] = []
    monkeypatch.setattr(studio.runner, "_publish", events.append)
    put(client, 7, np.roll(scene_labels(7), 20, axis=1))
    client.put("/api/directions/7", json={"direction": "forward"})
    client.post("/api/run", json={})
    studio.runner.wait()
    assert studio.runner.status["state"] == "complete", studio.runner.status
    shown = [e["frame"] for event in events if event["type"] == "frames" for e in event["frames"]]
    assert set(shown) <= set(range(7, FRAMES))
    assert studio.runner.status["kept"] == FRAMES
    assert review.read_text(encoding="utf-8") != earlier
    for index, content in kept.items():
        assert studio.project.result_path(index).read_bytes() == content
    changed = load_labels(studio.project.result_path(8))
    assert (changed != np.roll(scene_labels(8), 20, axis=1)).mean() < 0.1


def test_mask_in_the_middle_runs_both_ways(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames before the mask are shown while the backward pass runs, last first."""
    events: list[Event] = []
    monkeypatch.setattr(studio.runner, "_publish", events.append)
    put(client, 6, scene_labels(6))
    client.put("/api/names/1", json={"name": "square"})
    client.post("/api/run", json={})
    studio.runner.wait()
    assert studio.runner.status["state"] == "complete", studio.runner.status
    shown = [e["frame"] for event in events if event["type"] == "frames" for e in event["frames"]]
    assert shown[:7] == [6, 5, 4, 3, 2, 1, 0]
    tracks = client.get("/api/tracks").json()["frames"]
    assert [entry["frame"] for entry in tracks] == list(range(FRAMES))
    assert any(event.get("backward") for event in events)
    for index in range(FRAMES):
        labels = load_labels(studio.project.result_path(index))
        assert (labels == scene_labels(index)).mean() > 0.9
    report = json.loads((studio.project.out / "run.json").read_text())
    assert report["object_names"] == {"1": "square"}


def test_failed_run_states_the_reason(client: TestClient, studio: Studio) -> None:
    """A file of no run is in the way; it is neither used nor replaced."""
    put(client, 0, scene_labels(0))
    foreign = studio.project.paths.tracks
    foreign.write_text("not of a run")
    client.post("/api/run", json={})
    studio.runner.wait()
    status = client.get("/api/state").json()["run"]
    assert status["state"] == "failed"
    assert "would be replaced" in status["message"]
    assert foreign.read_text() == "not of a run"


def test_run_that_is_cancelled_at_once_is_stopped(client: TestClient, studio: Studio) -> None:
    """The child is still starting then."""
    put(client, 0, scene_labels(0))
    client.post("/api/run", json={})
    client.delete("/api/run")
    studio.runner.wait()
    status = studio.runner.status
    assert (status["state"], status["kept"]) == ("stopped", 0), status

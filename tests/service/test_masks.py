"""The masks of a session are those of ``mpn run``, in both ways of feeding."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mpn.formats.rle import counts_from_string, mask_from_counts
from mpn.masks import load_labels, png_from_labels, save_labels
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from mpn.types import UInt8Array
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels
from tests.service.conftest import FRAMES
from tests.service.servers import RunningServer, events_of, png, send_frames


def masks_of_run(
    video: Path, masks: Mapping[int, UInt8Array], folder: Path, engine_dir: Path, **options: object
) -> list[bytes]:
    """Return the mask files of ``mpn run``."""
    folder.mkdir()
    paths = {}
    for index, labels in masks.items():
        paths[index] = folder / f"given{index}.png"
        save_labels(paths[index], labels)
    out = folder / "out"
    run_video(
        RunRequest(
            video=str(video),
            masks=paths,
            out=out,
            engine_dir=engine_dir,
            save=frozenset({"masks"}),
            **options,  # type: ignore[arg-type]
        )
    )
    return [path.read_bytes() for path in sorted((out / "masks").iterdir())]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, rgb in enumerate(scene(FRAMES)):
        (folder / f"{index:05d}.png").write_bytes(png(rgb))
    return folder


@pytest.fixture(scope="module")
def correction() -> UInt8Array:
    """A mask of frame 4: object 1 moved, and object 3 added."""
    labels = np.zeros(SCENE_HW, np.uint8)
    labels[5:15, 60:80] = 1
    labels[40:55, 5:25] = 3
    return labels


def saved(server: RunningServer, session: str) -> dict[str, bytes]:
    response = server.client.get(f"{session}/results")
    assert response.status_code == 200, response.text
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_frames_have_the_masks_of_a_run(
    server: RunningServer, images: Path, engine_dir: Path, tmp_path: Path, correction: UInt8Array
) -> None:
    """Four sessions at once; one corrects frame 4, after its mask was computed."""
    frames, mask = list(scene(FRAMES)), scene_labels(0)
    expected = masks_of_run(images, {0: mask}, tmp_path / "run", engine_dir)
    corrected = masks_of_run(
        images, {0: mask, 4: correction}, tmp_path / "both", engine_dir, direction="forward"
    )
    sessions = [server.create(save=["rle"]) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda session: send_frames(server, session, frames, mask), sessions[:3])
        )
    assert found == [expected] * 3
    last = sessions[3]
    assert send_frames(server, last, frames[:5], mask) == expected[:5]
    given = server.client.put(f"{last}/masks/4", content=png_from_labels(correction))
    assert given.json()["is_applied"] is True
    assert server.client.get(f"{last}/masks/4").content == corrected[4]
    assert corrected[4] != expected[4]
    for index in range(5, FRAMES):
        server.client.put(f"{last}/frames/{index}", content=png(frames[index]))
        assert server.client.get(f"{last}/masks/{index}?wait_s=30").content == corrected[index]
    assert server.client.post(f"{last}/end").json()["state"] == "complete"
    files = saved(server, last)
    assert [files[f"masks/{index:05d}.png"] for index in range(FRAMES)] == corrected
    assert files["before/00004.png"] == expected[4]
    report = json.loads(files["run.json"])
    assert (report["state"], report["frames"]) == ("complete", FRAMES)
    assert [mask["frame"] for mask in report["masks"]] == [0, 4]
    lines = [json.loads(line) for line in files["tracks.jsonl"].splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert "rle.jsonl" in files
    revisions = [
        (event["frame"], event["revision"])
        for event, _ in zip(events_of(server, last), range(FRAMES + 2), strict=False)
        if event["event"] == "frame"
    ]
    assert revisions == [(k, 0) for k in range(5)] + [(4, 1)] + [(k, 0) for k in range(5, FRAMES)]


def test_mask_of_a_later_frame_waits_for_it(
    server: RunningServer, images: Path, engine_dir: Path, tmp_path: Path, correction: UInt8Array
) -> None:
    masks = {0: scene_labels(0), 4: correction}
    expected = masks_of_run(images, masks, tmp_path / "run", engine_dir, direction="forward")
    frames = list(scene(FRAMES))
    session = server.create()
    send_frames(server, session, frames[:1], masks[0])
    given = server.client.put(f"{session}/masks/4", content=png_from_labels(correction)).json()
    assert (given["frames"], given["object_ids"], given["is_applied"]) == ([4], [1, 3], False)
    for index in range(1, FRAMES):
        server.client.put(f"{session}/frames/{index}", content=png(frames[index]))
    server.client.post(f"{session}/end")
    files = saved(server, session)
    assert [files[f"masks/{index:05d}.png"] for index in range(FRAMES)] == expected
    early = server.client.put(f"{session}/masks/2", content=png_from_labels(correction))
    assert early.status_code == 409


def test_video_has_the_masks_of_a_run(
    server: RunningServer, clip: Path, engine_dir: Path, tmp_path: Path, correction: UInt8Array
) -> None:
    """Run, then correct frame 4 and run again: as ``mpn run`` and ``--resume``."""
    mask = scene_labels(0)
    expected = masks_of_run(clip, {0: mask}, tmp_path / "run", engine_dir)
    session = server.create("video")
    assert server.client.put(f"{session}/video", content=clip.read_bytes()).status_code == 200
    server.client.put(f"{session}/masks/0", content=png_from_labels(mask))
    assert server.client.post(f"{session}/run").status_code == 202
    masks: dict[int, bytes] = {}
    for event in events_of(server, session, "?masks=png"):
        if event["event"] == "frame":
            masks[event["frame"]] = base64.b64decode(event["mask_png"])
        elif event["state"] != "running":
            assert event["state"] == "complete", event
            latest = event["id"]
            break
    assert [masks[index] for index in range(FRAMES)] == expected

    # The same folder, as the command line continues it.
    save_labels(tmp_path / "run" / "given4.png", correction)
    run_video(
        RunRequest(
            video=str(clip),
            masks={index: tmp_path / "run" / f"given{index}.png" for index in (0, 4)},
            out=tmp_path / "run" / "out",
            engine_dir=engine_dir,
            save=frozenset({"masks"}),
            resume=True,
        )
    )
    resumed = [path.read_bytes() for path in sorted((tmp_path / "run/out/masks").iterdir())]
    assert resumed != expected
    server.client.put(f"{session}/masks/4", content=png_from_labels(correction))
    server.client.post(f"{session}/run")
    changed = {}
    for event in events_of(server, session, "?masks=rle", **{"last-event-id": latest}):
        if event["event"] == "frame":
            changed[event["frame"]] = event["mask_rle"]
        elif event["event"] == "state" and event["state"] != "running":
            break
    assert 0 not in changed  # the mask of the first frame has no other frames
    files = saved(server, session)
    assert [files[f"masks/{index:05d}.png"] for index in range(FRAMES)] == resumed
    (tmp_path / "last.png").write_bytes(resumed[-1])
    labels = load_labels(tmp_path / "last.png", allow_empty=True)
    for entry in changed[FRAMES - 1]:
        found = entry["segmentation"]
        drawn = mask_from_counts(counts_from_string(found["counts"]), tuple(found["size"]))
        assert np.array_equal(drawn, labels == entry["object_id"])
    assert {entry["object_id"] for entry in changed[FRAMES - 1]} == set(np.unique(labels)) - {0}


def test_annotations_with_names_are_masks(server: RunningServer, clip: Path) -> None:
    """JSON of labelme, in a video and in frames."""
    height, width = SCENE_HW
    points = [[10, 10], [40, 10], [40, 40], [10, 40]]
    shape = {"label": "fish", "shape_type": "polygon", "points": points, "group_id": None}
    mask = json.dumps(
        {"shapes": [shape], "imagePath": "00000.png", "imageHeight": height, "imageWidth": width}
    )
    video, frames = server.create("video"), server.create()
    server.client.put(f"{video}/video", content=clip.read_bytes())
    server.client.put(f"{frames}/frames/0", content=png(next(iter(scene(1)))))
    for session in (video, frames):
        given = server.client.put(f"{session}/masks/0", content=mask)
        assert given.status_code == 200, given.text
        assert given.json()["object_names"] == {"1": "fish"}

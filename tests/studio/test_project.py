from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mpn.errors import OutputError
from mpn.masks import load_labels, save_labels
from mpn.runtime.media.random_access import FrameAccess
from mpn.runtime.media.writers import crc32_of_frame
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from mpn.studio.project import Project, StaleError
from mpn.studio.worth import frames_to_check
from tests.runtime.media.clips import SCENE_HW, scene_labels


def test_project_of_another_server_is_refused(
    project: Project, access: FrameAccess, clip: Path
) -> None:
    with pytest.raises(OutputError, match="in use"):
        Project(str(clip), access, project.out)


def test_results_of_another_video_are_refused(project: Project, access: FrameAccess) -> None:
    (frame,) = access.frames_up_to(2)
    line = {"frame": 2, "frame_crc32": crc32_of_frame(frame), "objects": []}
    tracks = project.paths.tracks
    project.set_name(1, "koi")
    project.close()
    tracks.write_text(json.dumps(line) + "\n")
    Project(project.video, access, project.out).close()
    tracks.write_text(json.dumps({**line, "frame_crc32": "00000000"}) + "\n")
    with pytest.raises(OutputError, match="another video"):
        Project(project.video, access, project.out)


def test_empty_drawing_is_no_drawing(project: Project) -> None:
    labels = np.zeros(SCENE_HW, np.uint8)
    etag = project.save_mask(4, labels + 1, base_etag="none")
    project.set_direction(4, "forward")
    assert project.save_mask(4, labels, base_etag=etag) == "none"
    assert (project.drawn(), project.directions, project.mask(4).source) == ({}, {}, "none")


def test_removed_folder_is_created_again(project: Project) -> None:
    shutil.rmtree(project.out)
    project.set_name(1, "koi")
    shutil.rmtree(project.out)
    project.save_mask(4, np.ones(SCENE_HW, np.uint8), base_etag="none")
    assert list(project.drawn()) == [4]


def test_project_without_edits_leaves_no_folder(
    clip: Path, access: FrameAccess, tmp_path: Path
) -> None:
    Project(str(clip), access, tmp_path / "out").close()
    assert not (tmp_path / "out").exists()


def test_project_opens_with_what_was_saved(
    project: Project, access: FrameAccess, clip: Path
) -> None:
    labels = np.zeros(SCENE_HW, np.uint8)
    labels[5:9, 7:20] = 3
    etag = project.save_mask(4, labels, base_etag="none")
    project.set_name(3, "koi")
    project.set_direction(4, "forward")
    unfinished = project.folder / ".00004.png.0123456789abcdef.partial"
    unfinished.write_bytes(b"half")
    project.close()
    with Project(str(clip), access, project.out) as again:
        np.testing.assert_array_equal(again.mask(4).labels, labels)
        assert again.drawn() == {4: etag}
        assert (again.names, again.directions) == ({3: "koi"}, {4: "forward"})
        assert not unfinished.exists()
        with pytest.raises(StaleError):
            again.save_mask(4, labels, base_etag="none")


def test_project_adopts_the_masks_of_mpn_run(
    clip: Path, access: FrameAccess, engine_dir: Path, tmp_path: Path
) -> None:
    """The masks that mpn-run was given become drawn masks, with the same pixels."""
    given = {0: scene_labels(0), 6: np.where(scene_labels(6) > 0, 2, 0).astype(np.uint8)}
    given[6][: SCENE_HW[0] // 2] = 0
    for index, labels in given.items():
        save_labels(tmp_path / f"{index}.png", labels)
    run_video(
        RunRequest(
            video=str(clip),
            masks={index: tmp_path / f"{index}.png" for index in given},
            out=tmp_path / "out",
            engine_dir=engine_dir,
        )
    )
    with Project(str(clip), access, tmp_path / "out") as project:
        assert list(project.drawn()) == [0, 6]
        assert project.pending() == []
        for index, labels in given.items():
            saved = load_labels(project.drawn_path(index))
            np.testing.assert_array_equal(saved, labels)


def entry(frame: int, reliability: float, state: str = "tracked") -> dict[str, object]:
    tracks = [
        {"object_id": 1, "reliability": 0.95, "confidence": 0.9, "state": "tracked"},
        {"object_id": 2, "reliability": reliability, "confidence": 0.9, "state": state},
    ]
    return {"frame": frame, "objects": tracks}


def test_frames_to_check_are_worst_and_spread() -> None:
    entries = [entry(i, 0.9) for i in range(100)]
    for i, reliability in ((30, 0.3), (31, 0.1), (32, 0.2), (70, 0.4)):
        entries[i] = entry(i, reliability)
    entries[50] = entry(50, 0.45, "lost")
    found = frames_to_check(entries)
    assert [each["frame"] for each in found] == [31, 50, 70]
    assert found[1] == {"frame": 50, "object_id": 2, "is_lost": True, "reliability": 0.45}
    assert frames_to_check([{"frame": 0, "objects": []}]) == []

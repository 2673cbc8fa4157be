"""A batch on two nodes of Ray completes each video once if one is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.speed.batch import completed
from benchmarks.speed.batch_ray import two_nodes
from benchmarks.speed.same_masks import compared
from mpn.masks import save_labels
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video

_CLIPS = 6


@pytest.mark.fullsize
def test_batch_on_ray_survives_a_lost_node(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", scene(8))
    save_labels(tmp_path / "first.png", scene_labels(0))
    make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)
    rows = [f"clip.mp4,first.png,v{index}" for index in range(_CLIPS)]
    (tmp_path / "m.csv").write_text("\n".join(["video,mask,name", *rows]) + "\n")
    command = [sys.executable, "-m", "mpn", "batch", "m.csv", "--engine-dir", "engines", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    local = subprocess.run([*command, "-o", "local"], cwd=tmp_path, env=environment, check=False)
    assert local.returncode == 0
    with two_nodes() as nodes:
        batch = subprocess.Popen(
            [*command, "-o", "ray", "--runner", "ray", "--address", nodes.address],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
        )
        while not list(tmp_path.glob("ray/*/done.json")) and batch.poll() is None:
            time.sleep(0.05)
        assert nodes.kill(0) > 1
        output, _ = batch.communicate()
    assert batch.returncode == 0
    assert output.startswith(b"{")  # Ray prints about the lost node
    assert output.endswith(b"}\n")
    assert completed(tmp_path / "ray" / "batch.jsonl") == {f"v{i}": 1 for i in range(_CLIPS)}
    for index in range(_CLIPS):
        masks = (tmp_path / side / f"v{index}" / "masks" for side in ("local", "ray"))
        assert compared(*masks) == {"frames": 8, "differing": 0}

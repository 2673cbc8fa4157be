"""The clients of docs/serve.md run without a change but the port."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpn.masks import load_labels, save_labels
from tests.conftest import REPOSITORY
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels
from tests.service.conftest import FRAMES
from tests.service.servers import TOKEN, RunningServer, png

_CLIENT = re.compile(r"<!-- client: (\w+) -->\s+```\w+\n(.*?)```", re.DOTALL)


@pytest.fixture
def clients(server: RunningServer, clip: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, str]:
    """The code of the page for this server, in a folder with the files that it reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mpn-serve").mkdir()
    (tmp_path / "mpn-serve" / "token").write_text(TOKEN)
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    save_labels(tmp_path / "first.png", scene_labels(0))
    save_labels(tmp_path / "corrected.png", scene_labels(3))
    page = (REPOSITORY / "docs" / "serve.md").read_text(encoding="utf-8")
    return {
        name: code.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
        for name, code in _CLIENT.findall(page)
    }


def _names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def test_python_clients_run(clients: dict[str, str], tmp_path: Path) -> None:
    def images() -> Iterator[bytes]:
        yield from map(png, scene(3))

    namespace: dict[str, Any] = {"images": images()}
    exec(clients["video"], namespace)
    masks = sorted(tmp_path.glob("*.png"))
    assert len(masks) == FRAMES + 2  # and those that were given
    assert (load_labels(tmp_path / "00003.png") == scene_labels(3)).all()
    for path in masks:
        load_labels(path, size_hw=SCENE_HW)
    assert {"masks/00000.png", "run.json"} <= _names(tmp_path / "results.zip")
    exec(clients["frames"], namespace)
    assert namespace["mask_png"].startswith(b"\x89PNG")
    assert namespace["http"].get(namespace["session"]).json()["state"] == "complete"
    namespace["http"].close()


def test_curl_client_runs(clients: dict[str, str], tmp_path: Path) -> None:
    """Without the events, which have no end, and after the run."""
    lines = [line for line in clients["curl"].splitlines() if "events" not in line]
    last = next(k for k, line in enumerate(lines) if "results" in line)
    lines.insert(last, f'api "$url/$id/masks/{FRAMES - 1}?wait_s=60" -o last.png')
    lines.insert(last + 1, "until api $url/$id | grep -q complete; do sleep 0.05; done")
    script = "\n".join(["set -e", *lines])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    load_labels(tmp_path / "00000.png", size_hw=SCENE_HW)
    assert {"masks/00000.png", "run.json"} <= _names(tmp_path / "results.zip")

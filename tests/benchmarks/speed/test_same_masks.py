from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.schema import load_result
from benchmarks.speed.same_masks import main
from mpn.masks import save_labels

MAIN = """
import json, pathlib, sys

def main():
    arguments = sys.argv[1:]
    out = pathlib.Path(arguments[arguments.index("-o") + 1])
    masks = out / "masks"
    assert len(list(pathlib.Path(arguments[1]).glob("*.jpg"))) == 3
    masks.mkdir(parents=True)
    given = pathlib.Path(arguments[arguments.index("--mask") + 1])
    for index in range(3):
        name = "{changed}" if index == 2 and "--fast" in arguments else str(given)
        (masks / f"{{index:05d}}.png").write_bytes(pathlib.Path(name).read_bytes())
    report = dict(
        frames=3, fps_after_finetune={fps}, versions={{"mpn-runtime": "0"}},
        engine=dict(name="lite", digests={{}}), finetune=dict(ran=False),
    )
    (out / "run.json").write_text(json.dumps(report))
    return 0
"""


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    root = tmp_path / "davis"
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 1:3] = 1
    (root / "Annotations/480p/dog").mkdir(parents=True)
    (root / "JPEGImages/480p/dog").mkdir(parents=True)
    for index in range(3):
        save_labels(root / f"Annotations/480p/dog/{index:05d}.png", labels)
        (root / f"JPEGImages/480p/dog/{index:05d}.jpg").touch()
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("dog\n")
    return root


def write_side(root: Path, name: str, *, fps: float, changed: Path) -> Path:
    """Write a package whose ``--fast`` gives other bytes in the last mask."""
    (root / name / "mpn" / "cli").mkdir(parents=True)
    for path in ("__init__.py", "cli/__init__.py"):
        (root / name / "mpn" / path).write_text("")
    text = MAIN.format(fps=fps, changed=changed)
    (root / name / "mpn" / "cli" / "main.py").write_text(text)
    return root / name


@pytest.mark.parametrize(
    ("options", "code"), [("--options=", 0), ("--options=--fast", 1), ("--new-options=--fast", 1)]
)
def test_masks_of_two_sides_are_compared(
    tmp_path: Path, davis: Path, monkeypatch: pytest.MonkeyPatch, options: str, code: int
) -> None:
    other = np.zeros((4, 6), np.uint8)
    other[0, 0] = 1
    save_labels(tmp_path / "other.png", other)
    first = davis / "Annotations/480p/dog/00000.png"
    old = write_side(tmp_path, "a", fps=10.0, changed=first)
    new = write_side(tmp_path, "b", fps=20.0, changed=tmp_path / "other.png")
    out = tmp_path / "same_masks.json"
    arguments = ["--old", old, "--new", new, "--davis-root", davis, "-o", out]
    monkeypatch.setattr("sys.argv", ["same_masks", *map(str, arguments), options])
    assert main() == code
    result = load_result(out)
    assert result["data"]["sequences"] == {"dog": {"frames": 3, "differing": code}}
    assert result["is_equal"] is (code == 0)
    assert result["wall"]["ratio"]["of_minima"] == pytest.approx(2.0)

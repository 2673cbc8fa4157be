from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.schema import load_result
from benchmarks.speed import batch
from mpn.masks import save_labels

SCRIPT = """
import csv, json, pathlib, sys

command, source, *rest = sys.argv[1:]
out = pathlib.Path(rest[rest.index("-o") + 1])
if command == "run":
    rows = [{"mask": rest[rest.index("--mask") + 1], "out": out}]
else:
    rows = [{**row, "out": out / row["name"]} for row in csv.DictReader(open(source))]
report = dict(
    video=dict(size_hw=[4, 6]), versions={"mpn-runtime": "0"},
    engine=dict(name="lite", digests={}),
)
for row in rows:
    (row["out"] / "masks").mkdir(parents=True)
    (row["out"] / "run.json").write_text(json.dumps(report))
    for index in range(2):
        content = pathlib.Path(row["mask"]).read_bytes()
        if index and command in rest:
            content += b"changed"
        (row["out"] / "masks" / f"{index:05d}.png").write_bytes(content)
"""


@pytest.mark.parametrize(("options", "differing"), [("--options=", 0), ("--options=batch", 1)])
def test_batch_and_loop_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, differing: int
) -> None:
    davis, out = tmp_path / "davis", tmp_path / "batch.json"
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    for name, sequence in (("val", "dog"), ("train", "cat")):
        (davis / "ImageSets" / "2017" / f"{name}.txt").write_text(sequence)
        for kind, suffix in (("Annotations", "png"), ("JPEGImages", "jpg")):
            folder = davis / kind / "480p" / sequence
            folder.mkdir(parents=True)
            for index in range(3):
                save_labels(folder / f"{index:05d}.png", np.ones((4, 6), np.uint8))
                (folder / f"{index:05d}.png").rename(folder / f"{index:05d}.{suffix}")
    (tmp_path / "fake.py").write_text(SCRIPT)
    monkeypatch.setattr(batch, "_COMMAND", [sys.executable, str(tmp_path / "fake.py")])
    arguments = ["--davis-root", davis, "--clips", "2", "--frames", "2", "--repeats", "2"]
    monkeypatch.setattr("sys.argv", ["batch", *map(str, arguments), options, "-o", str(out)])
    assert batch.main() == differing
    result = load_result(out)
    expected = {"frames": 2, "differing": differing}
    assert result["clips"] == {"dog": expected, "cat": expected}
    assert result["wall"]["loop"]["n"] == 2

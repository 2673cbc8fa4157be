from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report.schema import load_result
from benchmarks.speed.releases import main

MAIN = """
import json, os, pathlib, sys

def main():
    arguments = sys.argv[1:]
    cache = pathlib.Path(os.environ["XDG_CACHE_HOME"], "weights")
    is_cold = not cache.exists()
    cache.mkdir(parents=True, exist_ok=True)
    out = pathlib.Path(arguments[arguments.index("-o") + 1])
    out.mkdir()
    with open({log!r}, "a") as file:
        file.write("{name}" + ("1" if "--end" in arguments else "all") + " ")
    report = dict(
        wall_s={first_s} if is_cold else 0.1, fps_after_finetune={fps},
        versions={{"mpn-runtime": "{name}"}}, engine=dict(name="lite", digests={{}}),
        finetune=dict(ran={is_finetuned}),
    )
    (out / "run.json").write_text(json.dumps(report))
    return {code}
"""


def write_release(
    root: Path,
    name: str,
    *,
    first_s: float,
    fps: float,
    code: int = 0,
    is_finetuned: bool = False,
) -> Path:
    """Write a package whose command line only writes run.json."""
    (root / name / "mpn" / "cli").mkdir(parents=True)
    for path in ("__init__.py", "cli/__init__.py"):
        (root / name / "mpn" / path).write_text("")
    text = MAIN.format(
        log=str(root / "log"),
        name=name,
        first_s=first_s,
        fps=fps,
        code=code,
        is_finetuned=is_finetuned,
    )
    (root / name / "mpn" / "cli" / "main.py").write_text(text)
    return root / name


def run(monkeypatch: pytest.MonkeyPatch, old: Path, new: Path, out: Path, *options: str) -> int:
    arguments = ["--old", old, "--new", new, "--objects", "1", "--repeats", "2", "--frames", "2"]
    arguments += ["--frame-size", "96x64", "-o", out, *options]
    monkeypatch.setattr("sys.argv", ["releases", *map(str, arguments)])
    return main()


def test_releases_alternate_with_a_cold_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_release(tmp_path, "a", first_s=20.0, fps=10.0)
    new = write_release(tmp_path, "b", first_s=2.0, fps=20.0)
    out = tmp_path / "releases.json"
    assert run(monkeypatch, old, new, out) == 0
    assert (tmp_path / "log").read_text() == "a1 aall b1 ball b1 ball a1 aall "
    result = load_result(out)
    (figures,) = result["runs"]
    assert figures["first_mask"]["old"]["min_ms"] == 20_000
    assert figures["first_mask"]["ratio"]["new"]["of_medians"] == 10
    assert figures["wall"]["ratio"]["new"]["of_medians"] == 2
    assert 1 < figures["memory"]["new"]["min_mib"] < 1000
    assert result["releases"]["new"]["version"] == "b"


def test_releases_third_side_and_kept_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the side that fine-tunes keeps its weights."""
    old = write_release(tmp_path, "a", first_s=20.0, fps=10.0, is_finetuned=True)
    new = write_release(tmp_path, "b", first_s=2.0, fps=20.0)
    out = tmp_path / "releases.json"
    side = f"int8={new},engines=int8,backend=openvino"
    assert run(monkeypatch, old, new, out, "--first-masks", "1", "--side", side) == 0
    assert (tmp_path / "log").read_text() == "a1 aall b1 ball b1 ball b1 ball b1 ball aall "
    result = load_result(out)
    first = result["runs"][0]["first_mask"]
    assert [first[name]["n"] for name in ("old", "new", "int8")] == [1, 2, 2]
    assert first["ratio"]["int8"]["of_minima"] == 10
    assert result["releases"]["int8"]["backend"] == "openvino"
    for unusable, message in ((f"x={new},threads=2", "is not NAME=SRC"), (side, "two sides")):
        assert run(monkeypatch, old, new, out, "--side", side, "--side", unusable) == 1
        assert message in capsys.readouterr().err


def test_releases_failed_run_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_release(tmp_path, "a", first_s=1.0, fps=10.0)
    new = write_release(tmp_path, "b", first_s=1.0, fps=10.0, code=1)
    assert run(monkeypatch, old, new, tmp_path / "releases.json") == 1
    assert "failed: no message" in capsys.readouterr().err.splitlines()[-1]
    assert run(monkeypatch, tmp_path, new, tmp_path / "releases.json") == 1
    assert "has no package mpn" in capsys.readouterr().err

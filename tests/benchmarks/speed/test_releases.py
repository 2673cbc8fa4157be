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
        finetune=dict(ran=is_cold),
    )
    (out / "run.json").write_text(json.dumps(report))
    return {code}
"""


def write_release(root: Path, name: str, *, first_s: float, fps: float, code: int = 0) -> Path:
    """Write a package whose command line only writes run.json."""
    (root / name / "mpn" / "cli").mkdir(parents=True)
    for path in ("__init__.py", "cli/__init__.py"):
        (root / name / "mpn" / path).write_text("")
    text = MAIN.format(log=str(root / "log"), name=name, first_s=first_s, fps=fps, code=code)
    (root / name / "mpn" / "cli" / "main.py").write_text(text)
    return root / name


def run(monkeypatch: pytest.MonkeyPatch, old: Path, new: Path, out: Path) -> int:
    arguments = ["--old", old, "--new", new, "--objects", "1", "--repeats", "2", "--frames", "2"]
    arguments += ["--frame-size", "96x64", "-o", out]
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
    assert figures["first_mask"]["ratio"]["of_medians"] == 10
    assert figures["wall"]["ratio"]["of_medians"] == 2
    assert result["releases"]["new"]["version"] == "b"


def test_releases_failed_run_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_release(tmp_path, "a", first_s=1.0, fps=10.0)
    new = write_release(tmp_path, "b", first_s=1.0, fps=10.0, code=1)
    assert run(monkeypatch, old, new, tmp_path / "releases.json") == 1
    assert "failed: no message" in capsys.readouterr().err.splitlines()[-1]
    assert run(monkeypatch, tmp_path, new, tmp_path / "releases.json") == 1
    assert "has no package mpn" in capsys.readouterr().err

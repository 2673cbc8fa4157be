from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.accuracy import corrections
from benchmarks.report.schema import load_result
from tests.builders.engine_dirs import make_engine_dir


@pytest.mark.parametrize(
    ("set_name", "more", "is_held_out"),
    [("val", [], True), ("train", [], False), ("train", ["--held-out"], True)],
)
def test_corrections_result_states_held_out_data(
    davis_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    set_name: str,
    more: list[str],
    is_held_out: bool,
) -> None:
    (davis_folder / "ImageSets" / "2017" / "train.txt").write_text("koi\n")
    engine_dir, out = make_engine_dir(tmp_path / "engines"), tmp_path / "corrections.json"
    arguments = ["--davis-root", davis_folder, "--engine-dir", engine_dir, "--set", set_name]
    arguments += ["--sequences", "koi", "--seeds", "2", "--threads", "1", "-o", out, *more]
    monkeypatch.setattr("sys.argv", ["corrections", *map(str, arguments)])
    assert corrections.main() == 0
    result = load_result(out)
    assert result["data"]["set"] == set_name
    assert result["data"]["is_held_out"] is is_held_out
    assert result["engine"]["name"]
    found = result["sequences"]["koi"]
    assert len(found["random"]) == 2
    gain = found["named"]["j_after"] - found["named"]["j_before"]
    assert found["named_gain"] == pytest.approx(gain, abs=1e-4)


def test_corrections_held_out_needs_an_engine_dir(
    davis_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped networks are trained on the set."""
    arguments = ["--davis-root", str(davis_folder), "--held-out"]
    monkeypatch.setattr("sys.argv", ["corrections", *arguments])
    with pytest.raises(SystemExit):
        corrections.main()
    assert "--held-out needs --engine-dir" in capsys.readouterr().err

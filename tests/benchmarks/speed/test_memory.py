from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.schema import load_result
from benchmarks.speed import memory
from benchmarks.speed.memory import forwards_and_backwards, memory_figures
from mpn.errors import InputError
from mpn.synthetic import render_clip
from tests.builders.engine_dirs import make_engine_dir


def run(monkeypatch: pytest.MonkeyPatch, engine_dir: Path, out: Path) -> int:
    arguments = ["--engine-dir", engine_dir, "--frames", "130", "--frame-size", "96x64"]
    arguments += ["--clip-frames", "4", "--repeat-frames", "4", "--threads", "1", "-o", out]
    monkeypatch.setattr("sys.argv", ["memory", *map(str, arguments)])
    return memory.main()


def test_memory_slope_is_that_after_start() -> None:
    """Growth before frame 100 does not count, growth after it does."""
    flat = memory_figures([(0, 100.0), (50, 180.0), (100, 200.0), (200, 200.0), (300, 200.0)])
    assert flat["rss_slope_per_1000_frames_mib"] == 0
    assert (flat["rss_at_100_mib"], flat["rss_at_end_mib"]) == (200, 200)
    leak = memory_figures([(0, 100.0), *((t, 200 + 0.02 * t) for t in range(100, 301, 100))])
    assert leak["rss_slope_per_1000_frames_mib"] == pytest.approx(20)
    with pytest.raises(InputError, match="use more --frames"):
        memory_figures([(0, 100.0), (100, 100.0)])


def test_clip_turns_back_at_both_ends() -> None:
    clip = list(render_clip(frames=3, size_hw=(64, 96)))
    played = list(forwards_and_backwards(clip, 6))
    order = [next(i for i, f in enumerate(clip) if np.array_equal(f.rgb, rgb)) for rgb in played]
    assert order == [0, 1, 2, 1, 0, 1]


def test_memory_command_compares_masks_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exits with 1 if one run has other masks."""
    engine_dir, out = make_engine_dir(tmp_path / "engines"), tmp_path / "memory.json"
    assert run(monkeypatch, engine_dir, out) == 0
    result = load_result(out)
    assert [made["threads"] for made in result["repeats"]["runs"]] == [1, 1, 2]
    assert result["repeats"]["are_equal"]
    assert result["memory"]["samples"][-1][0] == 129
    assert result["memory"]["rss_at_end_mib"] > 10
    digests = iter(("a", "b", "a"))
    monkeypatch.setattr(memory, "digest_of", lambda masks: next(digests))
    assert run(monkeypatch, engine_dir, out) == 1

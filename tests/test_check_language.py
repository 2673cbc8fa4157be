from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import REPOSITORY

checker = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "tools" / "check_language.py")))

GOOD = '''"""Warping of masks along a flow."""

SIZE = 3
"""Side of the kernel."""


class Warp:
    """Options of the warp."""

    @property
    def size(self) -> int:
        """Side of the kernel, in pixels."""
        return SIZE  # odd, so that the kernel has a centre


def warp() -> None:
    """Warp the masks into the current frame."""
    raise ValueError("masks must be (K, H, W)")


def test_warp_identity_is_exact() -> None:
    """The flow is zero: a question mark in the pattern `ask?` is allowed."""
'''


def test_check_source_plain_file_passes() -> None:
    assert checker.check_source(GOOD, "good.py") == []


@pytest.mark.parametrize(
    ("old", "new", "line", "rule"),
    [
        ("Warping of masks along a flow.", "Where masks go.", 1, "starts with 'Where'"),
        ("Options of the warp.", "Which options it has.", 8, "starts with 'Which'"),
        ("Options of the warp.", "Implements a warp.", 8, "use the imperative or a noun"),
        ("Warping of masks along a flow.", "Decides it.", 1, "use the imperative or a noun"),
        ("Warp the masks into the current frame.", "The warped masks.", 17, "starts with 'The'"),
        ("Warp the masks into the current frame.", "Warps the masks.", 17, "starts with 'Warps'"),
        ("Warp the masks into the current frame.", "Warping masks.", 17, "starts with 'Warping'"),
        ("Warp the masks into the current frame.", "(K, H, W).", 17, "starts with '(K'"),
        ("the current frame.", "the current frame", 17, "does not end with a period"),
        ("the current frame.", "the fram" + "e" * 51 + ".", 17, "80 characters"),
        ("along a flow.", "by twins.", 1, "banned word 'twins'"),
        ("Side of the kernel.", "Asked for.", 4, "banned word 'asked'"),
        ("odd, so", "as it is, so", 13, "banned word 'as it is'"),
        ("masks must be (K, H, W)", "nobody gave (K, H, W)", 18, "banned word 'nobody'"),
        ("The flow is zero", "size: What it is", 22, "starts with 'What'"),
        ("test_warp_identity_is_exact", "test_" + "x" * 56, 21, "61 characters"),
    ],
)
def test_check_source_violation_is_refused(old: str, new: str, line: int, rule: str) -> None:
    assert old in GOOD
    (found,) = checker.check_source(GOOD.replace(old, new, 1), "bad.py")
    assert found.startswith(f"bad.py:{line}: ")
    assert rule in found


def test_check_source_phrase_over_two_lines_is_refused() -> None:
    bad = GOOD.replace("The flow is zero:", "One.\n\n    The loop goes\n    on:")
    assert checker.check_source(bad, "bad.py") == ["bad.py:24: banned word 'goes on'"]


def test_main_reports_violations_and_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    assert checker.main([str(tmp_path)]) == 0
    (tmp_path / "bad.py").write_text('"""The lane."""\n')
    assert checker.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path}/bad.py:1: banned word 'lane'\n"

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpn.engines.directory.parity import load_parity
from mpn.errors import ManifestError
from tests.builders.engine_dirs import parity_document


def write(directory: Path, document: Any) -> None:
    (directory / "parity.json").write_text(json.dumps(document))


def test_directory_without_parity_has_none(tmp_path: Path) -> None:
    assert load_parity(tmp_path) is None


def test_worst_case_of_each_measure_is_kept(tmp_path: Path) -> None:
    write(tmp_path, parity_document())
    report = load_parity(tmp_path)
    assert report is not None
    assert report.reference == "PyTorch 2.13, float32, CPU"
    assert report.inputs == "two rendered scenes"
    assert report.document == parity_document()
    # The largest difference, and the smallest overlap.
    assert [(m.role, m.name, m.value, m.limit, m.cases) for m in report.measures] == [
        ("propagation", "max_relative", 1.5e-6, 1e-4, 2),
        ("propagation", "mask_iou", 0.993, 0.99, 2),
    ]


def test_skipped_verification_is_reported(tmp_path: Path) -> None:
    write(tmp_path, {"schema_version": 1, "verified": False, "skipped": "on demand"})
    report = load_parity(tmp_path)
    assert report is not None
    assert (report.reference, report.inputs, report.measures) == (None, "on demand", ())


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "must be a JSON object"),
        ({"verified": True}, "'schema_version' is missing"),
        (parity_document() | {"schema_version": 2}, "schema_version 2 is unknown.* reads 1"),
        (parity_document() | {"verified": "yes"}, "'verified' must be true or false"),
        (parity_document() | {"roles": {"flow": {}}}, r"'roles\.flow\.cases' is missing"),
    ],
)
def test_damaged_parity_is_one_line(tmp_path: Path, document: Any, says: str) -> None:
    write(tmp_path, document)
    with pytest.raises(ManifestError, match=says) as caught:
        load_parity(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'parity.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\0", b"\xff\xfe"])
def test_no_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "parity.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"parity\.json: invalid JSON"):
        load_parity(tmp_path)

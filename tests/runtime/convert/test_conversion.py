from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn.errors import InputError, MpnError, OutputError
from mpn.masks import save_labels
from mpn.runtime.convert import formats
from mpn.runtime.convert.conversion import Conversion, convert_results
from mpn.runtime.convert.formats import Format
from tests.builders.tiny_disk import tiny_disk as tiny_disk
from tests.runtime.convert.conftest import LABELS


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write_ids(conversion: Conversion, path: Path) -> None:
    """Write the frame and the ids of each mask, one line per frame."""
    lines = [f"{f.index} {np.unique(labels).tolist()}" for f, labels in conversion.read_labels()]
    path.write_text("\n".join([*lines, *conversion.names.values()]))


@pytest.fixture
def ids_format(monkeypatch: pytest.MonkeyPatch) -> None:
    added = Format("ids", ".txt", f"{__name__}:write_ids")
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "ids": added})


def test_conversion_selects_frames_and_objects(out: Path, ids_format: None) -> None:
    done: list[None] = []
    [path] = convert_results(
        out, ["ids"], object_ids=[2], start=1, end=3, on_frame=lambda: done.append(None)
    )
    assert path == out / "converted" / "ids.txt"
    assert path.read_text() == "1 [0, 2]\n2 [0, 2]\nkoi"
    assert len(done) == 2


def test_conversion_replaces_only_its_own_folder(out: Path, tmp_path: Path) -> None:
    [folder] = convert_results(out, ["rgba-png"])
    save_labels(out / "masks" / "00001.png", LABELS[3])
    assert convert_results(out, ["rgba-png"], end=2) == [folder]
    assert files_in(out / "converted") == {"rgba-png", "rgba-png/00000.png", "rgba-png/00001.png"}
    alpha = np.asarray(Image.open(folder / "00001.png"))[..., 3]
    assert np.array_equal(alpha > 0, LABELS[3] > 0)
    mine = tmp_path / "mine"
    mine.mkdir()
    assert convert_results(out, ["rgba-png"], target=mine) == [mine]
    (mine / "note.txt").write_text("keep")
    before = files_in(mine)
    with pytest.raises(OutputError, match="mine exists: remove it, or choose another path with -o"):
        convert_results(out, ["rgba-png"], target=mine)
    assert files_in(mine) == before


def test_several_formats_go_to_one_folder(out: Path, tmp_path: Path, ids_format: None) -> None:
    paths = convert_results(out, ["ids", "rgba-png", "ids"], target=tmp_path / "all")
    assert paths == [tmp_path / "all" / "ids.txt", tmp_path / "all" / "rgba-png"]
    assert paths[0].is_file()
    assert paths[1].is_dir()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", ["ids", "rgba-png"])
def test_interrupted_conversion_leaves_the_old_files(
    out: Path, ids_format: None, name: str, error: type[BaseException]
) -> None:
    convert_results(out, [name])
    before = files_in(out)

    def stop() -> None:
        raise error

    with pytest.raises(error):
        convert_results(out, [name], start=2, on_frame=stop)
    assert files_in(out) == before


def test_killed_conversion_is_removed_by_the_next(out: Path, ids_format: None) -> None:
    # Not a fork: threads of earlier tests would be missing in it, and their locks held.
    code = (
        "import os, sys, pathlib; from mpn.runtime.convert.conversion import convert_results\n"
        "convert_results(pathlib.Path(sys.argv[1]), ['rgba-png'], on_frame=lambda: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 9
    assert any(name.startswith(".mpn-convert-") for name in files_in(out / "converted"))
    convert_results(out, ["ids"])
    assert files_in(out / "converted") == {"ids.txt"}


@pytest.mark.parametrize("name", ["rgba-png", "exr", "prores4444", "mattes"])
def test_full_disk_is_one_line_and_leaves_nothing(out: Path, tiny_disk: Path, name: str) -> None:
    (tiny_disk / "filler").write_bytes(bytes(60_000))
    with pytest.raises(OutputError, match=f"^cannot write .*{name}.*: No space left on device$"):
        convert_results(out, [name], target=tiny_disk / name)
    assert files_in(tiny_disk) == {"filler"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["prores"]}, "no format is named 'prores': use one of "),
        ({"object_ids": [1, 7]}, "no object has the id 7: the results have 1, 2"),
        ({"start": 4}, r"no frame is in 4\.\.3: the results have frames 0 to 3"),
        ({"video": "other.mp4"}, "no such video: 'other.mp4'.* with --video PATH"),
    ],
)
def test_conversion_refuses_what_is_not_there(out: Path, options, message: str) -> None:
    given = {"names": ["rgba-png"], **options}
    with pytest.raises(InputError, match=message) as raised:
        convert_results(out, **given)
    assert isinstance(raised.value, MpnError)
    assert not (out / "converted" / "rgba-png").exists()

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mpn.batch.manifest import Unit, read_units
from mpn.errors import InputError
from mpn.runtime.run_options import RunOptions
from tests.runtime.media.clips import level_frame, write_folder


def read(folder: Path, name: str, text: str | bytes, **how: object) -> list[Unit]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_units([str(path)], **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoding", "separator", "line_end"),
    [("utf-8", ",", "\n"), ("utf-8-sig", ";", "\r\n"), ("utf-16", "\t", "\r\n")],
)
def test_manifest_csv_of_spreadsheets_is_read(
    tmp_path: Path, encoding: str, separator: str, line_end: str
) -> None:
    rows = [["Video", "mask", "size", "--no-osvos"], ["my clip.mp4", "m 1.png", "240", "yes"], []]
    rows += [["sub/b.mp4", "m.png", "", ""]]
    text = line_end.join(separator.join(row) for row in rows) + line_end
    first, second = read(tmp_path, "a.csv", text.encode(encoding), out_root=tmp_path / "out")
    assert first.name == "my clip"
    assert first.video == str(tmp_path / "my clip.mp4")
    assert first.masks == {None: str(tmp_path / "m 1.png")}
    assert first.out == str(tmp_path / "out" / "my clip")
    assert first.options == RunOptions(size=240, no_osvos=True)
    assert second.options == RunOptions()
    assert second.origin == f"{tmp_path / 'a.csv'}:4"
    assert Unit.from_json(json.loads(json.dumps(first.as_json()))) == first


def test_manifest_jsonl_has_masks_options_and_places(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "mask": ["m.png", "12:n.png"], "fps": 25, "one-shot": "off"},
        {"video": "s3://box/b c.mp4", "mask": "3:s3://box/m.png", "out": "s3://box/out"},
        {"video": "/abs/c.mp4", "mask": "m.png", "out": "place", "name": "x/c", "crf": False},
    ]
    text = "\n\n".join(map(json.dumps, rows))
    one, two, three = read(tmp_path, "a.jsonl", text, options=RunOptions(size=100))
    assert one.masks == {None: str(tmp_path / "m.png"), 12: str(tmp_path / "n.png")}
    assert one.options == RunOptions(fps="25", one_shot="off", size=100)
    assert (two.video, two.out) == ("s3://box/b c.mp4", "s3://box/out")
    assert two.masks == {3: "s3://box/m.png"}
    assert (three.name, three.video) == ("x/c", "/abs/c.mp4")
    assert three.out == str(tmp_path / "place")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "the manifest .*a.csv has no video"),
        ("a.csv", "a.mp4,m.png\n", "a.csv:1: the first line must name the columns"),
        ("a.csv", "video,name\na,b\n", "a.csv:1: .* 'video' and 'mask', got 'video,name'"),
        ("a.csv", "video,mask,crf\na,m,1 1\nb\n", r"; 1 other line is wrong \(3\)"),
        ("a.csv", "video,mask,sise\n", "a.csv:1: unknown column 'sise'"),
        ("a.csv", "video,mask,threads\n", "a.csv:1: 'threads' is an option of the whole batch"),
        ("a.csv", "video,video\n", "a.csv:1: two columns have the name 'video'"),
        ("a.csv", "video,mask\na.mp4\n", "a.csv:2: 'mask' is missing"),
        ("a.csv", "video,mask\na,m,x\n", "a.csv:2: 3 cells, but the header has 2"),
        ("a.csv", 'video,mask\n"a.mp4,m\n', r"a.csv:2: no CSV"),
        ("a.csv", b"video\0", "a.csv: it is no text in UTF-8"),
        ("a.csv", "video,mask,size\na,m,x\nb,m,1\nc,,\n",
         r"a.csv:2: 'size' must be a whole number, got 'x'; 2 other lines are wrong \(3, 4\)"),
        ("a.csv", "video,mask,crf\na,m,maybe\n", "a.csv:2: 'crf' must be true or false"),
        ("a.csv", "video,mask,decode\na,m,x\n", "a.csv:2: 'decode' must be one of auto, cpu"),
        ("a.csv", "video,mask,start,end\na,m,5,3\n", "a.csv:2: the end must be above"),
        ("a.csv", "video,mask,name\na,m,../b\n", r"a.csv:2: the name '../b' must be"),
        ("a.csv", "video,mask\nx/a.mp4,m\ny/a.mp4,m\n", "a.csv:3: two videos have the name 'a'"),
        ("a.csv", "video,mask,out\na,m,o\nb,m,./o\n", r"a.csv:3: two videos have the output"),
        ("a.csv", "video,mask,out\na,m,o\nb,m,o/b\n", r"a.csv:3: the output folder .* is inside"),
        ("a.jsonl", '{"video": "a", "mask": "m",}', "a.jsonl:1: invalid JSON"),
        ("a.jsonl", "\n[1]", "a.jsonl:2: a line must be a JSON object"),
        ("a.jsonl", '{"video": "a", "mask": []}', "a.jsonl:1: 'mask' must be a text or a list"),
        ("a.jsonl", '{"video": "a", "mask": "m", "size": "9"}', "'size' must be a whole number"),
        ("a.jsonl", '{"video": "0", "mask": "m"}', "'video' is a camera"),
        ("a.jsonl", '{"video": "a", "mask": "m", "crf": true, "CRF": true}', "two fields"),
    ],
)  # fmt: skip
def test_manifest_error_names_file_and_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, name, text)
    assert "\n" not in str(error.value)


def test_patterns_name_videos_by_the_part_that_varies(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b c.mp4", "sub/.hidden.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    write_folder(tmp_path / "clips" / "images", [level_frame(0)])
    template = str(tmp_path / "m" / "{name}.png")

    def names(*sources: str) -> dict[str, str]:
        units = read_units([str(tmp_path / each) for each in sources], mask=template)
        assert all(unit.masks == {None: template.replace("{name}", unit.name)} for unit in units)
        return {unit.name: Path(unit.video).name for unit in units}

    assert names("clips") == {"a": "a.mp4", "images": "images"}
    assert names("clips/**/*.mp4") == {"a": "a.mp4", "sub/b c": "b c.mp4"}
    assert names("clips/a.mp4", "clips/images") == {"a": "a.mp4", "images": "images"}
    with pytest.raises(InputError, match=r"no video matches '.*\.mkv'$"):
        names("clips/*.mkv")
    with pytest.raises(InputError, match=r"no video matches '.*': there is no folder '.*/absent'"):
        names("absent/*.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder '.*empty' has no video"):
        names("empty")
    with pytest.raises(InputError, match=re.escape("--mask 'masks/{name}.png'")):
        read_units([str(tmp_path / "clips")], mask="m.png")


def test_davis_sequences_share_one_output_folder(tmp_path: Path) -> None:
    for name in ("bear", "bus"):
        write_folder(tmp_path / "JPEGImages" / "480p" / name, [level_frame(0)])
    pattern = str(tmp_path / "JPEGImages" / "480p" / "*")
    units = read_units([pattern], mask="{name}/0.png", out_root=tmp_path / "out")
    assert {unit.out for unit in units} == {str(tmp_path / "out")}
    folders = [unit.folder.relative_to(tmp_path) for unit in units]
    assert folders == [Path("out/_runs/bear"), Path("out/_runs/bus")]

from __future__ import annotations

from pathlib import Path

import pytest

from mpn.errors import InputError
from mpn.runtime.media.video import VideoSource, open_video
from mpn.runtime.session.mask_frames import frame_of_mask
from tests.runtime.media.clips import level_frame, write_folder, write_video


def every_5th(folder: Path, *, prefix: str = "", start: int | None = None) -> VideoSource:
    """Open images 00000, 00005, ..., 00120, as of YouTube-VOS."""
    folder.mkdir(exist_ok=True)
    write_folder(folder, [level_frame(0)] * 25, pattern=prefix + "{:05d}.png")
    for index in reversed(range(25)):
        (folder / f"{prefix}{index:05d}.png").rename(folder / f"{prefix}{5 * index:05d}.png")
    return open_video(folder, start=start)


@pytest.mark.parametrize("prefix", ["", "Frame_"])
@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (20, "{}00020.png", 4),
        (4, "{}00020.png", 4),
        (20, "{}00100.png", 20),
        (20, "00020.png", 4),
        (4, "second.png", 4),
        (35, "second.png", 7),
        (999, "second.png", 999),
        (None, "{}00000.png", 0),
        (None, "{}00020.png", 4),
        (None, "first.png", None),
        (None, "v1.png", None),
    ],
)
def test_mask_belongs_to_the_frame_of_its_name(
    tmp_path: Path, prefix: str, given: int | None, name: str, expected: int | None
) -> None:
    with every_5th(tmp_path / "v1", prefix=prefix) as video:
        assert frame_of_mask(given, Path(name.format(prefix)), video) == expected


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        (20, "00010.png", r"name of frame 2 \(00010\), but was given for frame 20 \(00100\)"),
        (99, "00010.png", r"was given for frame 99: give 2:00010\.png"),
        (20, "second.png", r"may be the image 00100 \(index 20\) or 00020 \(index 4\)"),
    ],
)
def test_mask_in_doubt_is_refused(
    tmp_path: Path, given: int | None, name: str, message: str
) -> None:
    with every_5th(tmp_path / "v1") as video, pytest.raises(InputError, match=message) as caught:
        frame_of_mask(given, Path(name), video)
    assert "\n" not in str(caught.value)


def test_masks_of_a_video_file_go_by_their_number(tmp_path: Path) -> None:
    """Its frames have no names: FFmpeg numbers extracted frames from 1."""
    path = write_video(tmp_path / "clip.mp4", [level_frame(i) for i in range(4)])
    with open_video(path) as video:
        assert frame_of_mask(None, Path("00001.png"), video) is None
        assert frame_of_mask(3, Path("00001.png"), video) == 3

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.engines.weights import save_weights
from mpn.errors import OutputError
from mpn.runtime.finetune.cache import WeightCache, cache_key
from mpn.types import Float32Array

RGB = np.zeros((6, 8, 3), np.uint8)
LABELS = np.ones((6, 8), np.uint8)
FACTS: dict[str, Any] = {"role": "osvos", "seed": 0, "recipe": {"steps": 3}}
KEYS = [f"{n:064x}" for n in range(4)]


def weights(value: float = 1.0, size: int = 10) -> dict[str, Float32Array]:
    return {"a.weight": np.full((2, size), value, np.float32), "a.bias": np.zeros(3, np.float32)}


def test_the_key_depends_on_everything_and_on_nothing_else() -> None:
    base = cache_key(FACTS, rgb=RGB, labels=LABELS)
    assert base == cache_key(dict(reversed(FACTS.items())), rgb=RGB.copy(), labels=LABELS.copy())
    assert len(base) == 64
    other_rgb, other_labels = RGB.copy(), LABELS.copy()
    other_rgb[0, 0, 0], other_labels[0, 0] = 1, 2
    others = {
        cache_key(FACTS, rgb=other_rgb, labels=LABELS),
        cache_key(FACTS, rgb=RGB, labels=other_labels),
        cache_key({**FACTS, "seed": 1}, rgb=RGB, labels=LABELS),
        cache_key({**FACTS, "recipe": {"steps": 4}}, rgb=RGB, labels=LABELS),
        # the same bytes in another shape
        cache_key(FACTS, rgb=RGB.reshape(8, 6, 3), labels=LABELS.reshape(8, 6)),
    }
    assert len(others) == 5
    assert base not in others


def test_stored_weights_are_loaded(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path / "deep" / "cache")
    assert cache.load(KEYS[0]).weights is None
    cache.save(KEYS[0], weights(0.5))
    lookup = WeightCache(tmp_path / "deep" / "cache").load(KEYS[0])
    assert lookup.note == ""
    assert lookup.weights is not None
    for name, array in weights(0.5).items():
        np.testing.assert_array_equal(lookup.weights[name], array)
    assert cache.load(KEYS[1]).weights is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_entry_is_reported_and_replaced(tmp_path: Path, damage: str) -> None:
    cache = WeightCache(tmp_path)
    cache.save(KEYS[0], weights())
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    path.write_bytes(
        {"cut": content[:-4], "flipped": content, "empty": b"", "text": b"hello" * 9}[damage]
    )
    lookup = cache.load(KEYS[0])
    assert lookup.weights is None
    assert "damaged and are computed again" in lookup.note
    cache.save(KEYS[0], weights(2.0))
    again = cache.load(KEYS[0])
    assert again.weights is not None
    assert again.weights["a.weight"][0, 0] == 2


def test_cache_folder_is_private(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path / "cache")
    cache.save(KEYS[0], weights())
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["owner", "link", "writable"])
def test_entry_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tmp_path.chmod(0o777)  # shared
    cache = WeightCache(tmp_path)
    cache.save(KEYS[0], weights())
    (path,) = tmp_path.iterdir()
    path.chmod(0o644)
    assert cache.load(KEYS[0]).weights is not None  # control
    if kind == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    elif kind == "link":
        path.rename(tmp_path / "theirs")
        path.symlink_to(tmp_path / "theirs")
    else:
        path.chmod(0o666)
    lookup = cache.load(KEYS[0])
    assert lookup.weights is None
    assert lookup.note.startswith("the stored weights are not used: ")


def test_entry_that_was_renamed_is_not_used(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path)
    cache.save(KEYS[0], weights())
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(path.name.replace(KEYS[0], KEYS[1])))
    lookup = cache.load(KEYS[1])
    assert lookup.weights is None
    assert "another key" in lookup.note


def test_entry_of_0_2_without_a_key_is_used(tmp_path: Path) -> None:
    save_weights(tmp_path / f"{KEYS[0]}.safetensors", weights())
    assert WeightCache(tmp_path).load(KEYS[0]).weights is not None


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    cache = WeightCache(tmp_path)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.save(KEYS[0], weights())
    assert list(tmp_path.iterdir()) == []


def test_the_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    one = WeightCache(tmp_path)
    one.save(KEYS[0], weights(size=500))
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    cache = WeightCache(tmp_path, max_bytes=3 * size)
    for n, key in enumerate(KEYS[1:3], start=1):
        cache.save(key, weights(size=500))
        os.utime(tmp_path / f"{key}.safetensors", (n, n))
    os.utime(tmp_path / f"{KEYS[0]}.safetensors", (0, 0))
    assert cache.load(KEYS[0]).weights is not None  # used now, though it is the oldest
    cache.save(KEYS[3], weights(size=500))
    kept = {path.stem for path in tmp_path.iterdir()}
    assert kept == {KEYS[0], KEYS[2], KEYS[3]}


def test_the_newest_entry_stays_even_if_it_alone_is_too_large(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path, max_bytes=10)
    for key in KEYS[:2]:
        cache.save(key, weights())
    assert [path.stem for path in tmp_path.iterdir()] == [KEYS[1]]


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    theirs = [tmp_path / "notes.txt", tmp_path / "my-model.safetensors"]
    for path in theirs:
        path.write_text("x" * 1000)
    cache = WeightCache(tmp_path, max_bytes=10)
    for key in KEYS[:2]:
        cache.save(key, weights())
    assert set(tmp_path.iterdir()) == {*theirs, tmp_path / f"{KEYS[1]}.safetensors"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="cannot"):
        WeightCache(tmp_path / "new").save(KEYS[0], weights())
    tmp_path.chmod(stat.S_IRWXU)


def test_a_file_in_the_folders_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        WeightCache(tmp_path / "cache").save(KEYS[0], weights())

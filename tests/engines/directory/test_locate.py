"""Engine directories by name: the installed weights, folders, zips, addresses."""

from __future__ import annotations

import importlib
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from mpn._common.files import sha256_of_file
from mpn.engines.directory import locate
from mpn.engines.directory.archive import save_zip
from mpn.engines.directory.locate import (
    default_engine_dir,
    is_installed_weights,
    local_engine_dir,
    pinned,
)
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import open_engines
from mpn.errors import InputError, ManifestError
from tests.builders.engine_dirs import make_engine_dir
from tests.conftest import REPOSITORY


def test_default_dir_of_a_checkout_is_its_weights() -> None:
    expected = REPOSITORY / "weights" / "lite" / "src" / "mpn_weights_lite" / "engines"
    assert default_engine_dir() == expected
    assert is_installed_weights(expected / "plans")
    assert not is_installed_weights(REPOSITORY / "engines")


def test_default_dir_without_weights_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "_CHECKOUT", tmp_path)
    monkeypatch.delitem(sys.modules, locate.WEIGHTS_PACKAGE, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    with pytest.raises(ManifestError, match="pip install mpn-weights-lite") as caught:
        default_engine_dir()
    assert "\n" not in str(caught.value)
    package = tmp_path / "site" / "mpn_weights_lite"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    make_engine_dir(package / "engines")
    importlib.invalidate_caches()
    assert default_engine_dir() == package / "engines"


def test_shipped_engines_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = REPOSITORY / "weights" / "lite" / "src" / "mpn_weights_lite"
    monkeypatch.chdir(tmp_path)
    assert local_engine_dir("lite") == default_engine_dir()
    assert local_engine_dir("lite-int8") == package / "engines_int8"
    assert pinned("lite-int8").startswith("lite-int8#sha256=")
    # A folder of that name comes first.
    make_engine_dir(tmp_path / "lite-int8")
    assert local_engine_dir("lite-int8") == Path("lite-int8")
    # Weights of an earlier version lack the directory.
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(locate, "_weights_packages", lambda: iter([tmp_path]))
    with pytest.raises(ManifestError, match="has no engines lite-int8: pip install -U"):
        local_engine_dir("lite-int8")
    with pytest.raises(ManifestError, match="there is no zip file at absent"):
        local_engine_dir("absent.zip#sha256=" + 64 * "0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engines", external_data=True)


@pytest.fixture
def zipped(directory: Path, tmp_path: Path) -> Path:
    save_zip(directory, tmp_path / "engines.zip")
    return tmp_path / "engines.zip"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_local_dir_of_a_folder_is_the_folder(directory: Path, cache: Path) -> None:
    assert local_engine_dir(directory, cache=cache) == directory
    assert local_engine_dir(pinned(directory), cache=cache) == directory
    with pytest.raises(ManifestError, match=rf"not the pinned {'0' * 64}"):
        local_engine_dir(f"{directory}#sha256={'0' * 64}", cache=cache)
    assert not cache.exists()


def test_local_dir_of_a_zip_is_private_and_intact(
    directory: Path, zipped: Path, cache: Path
) -> None:
    found = local_engine_dir(zipped, cache=cache)
    assert found.parent == cache
    assert names_in(found) == names_in(directory)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (cache, found)} == {0o700}
    assert load_manifest(found) == load_manifest(directory)
    before = found.stat().st_ino
    assert local_engine_dir(pinned(zipped), cache=cache).stat().st_ino == before  # not again
    assert not [name for name in names_in(cache) if name.startswith(("new-", "."))]


@pytest.mark.parametrize("name", ["manifest.json", "propagation.onnx.data"])
def test_local_dir_that_was_damaged_is_unpacked_again(zipped: Path, cache: Path, name: str) -> None:
    found = local_engine_dir(zipped, cache=cache)
    content = (found / name).read_bytes()
    (found / name).write_bytes(content.replace(b"1", b"2") + b" ")
    assert local_engine_dir(zipped, cache=cache) == found
    assert (found / name).read_bytes() == content
    (found / name).unlink()
    assert local_engine_dir(zipped, cache=cache) == found
    assert (found / name).read_bytes() == content


def test_local_dir_in_a_cache_open_to_others_is_refused(zipped: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(ManifestError, match="chmod 700"):
        local_engine_dir(zipped, cache=cache)
    cache.chmod(0o700)
    found = local_engine_dir(zipped, cache=cache)
    found.chmod(0o777)  # another user may have written here: it is replaced
    assert stat.S_IMODE(local_engine_dir(zipped, cache=cache).stat().st_mode) == 0o700
    (record,) = cache.glob("zip-*")
    record.write_text("../../elsewhere")
    assert local_engine_dir(zipped, cache=cache) == found


def test_wrong_digest_of_a_zip_leaves_nothing(zipped: Path, cache: Path) -> None:
    with pytest.raises(ManifestError, match="not the pinned"):
        local_engine_dir(f"{zipped}#sha256={'0' * 64}", cache=cache)
    with pytest.raises(ManifestError, match="not the pinned"):
        local_engine_dir(f"file://{zipped}#sha256={'0' * 64}", cache=cache)
    assert not cache.exists() or names_in(cache) == set()
    with pytest.raises(ManifestError, match="64 hexadecimal digits, got 'abc'"):
        local_engine_dir(f"{zipped}#sha256=abc", cache=cache)


@pytest.mark.parametrize("as_zip", [True, False])
def test_local_dir_of_an_address_needs_it_once(
    directory: Path, zipped: Path, cache: Path, as_zip: bool
) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in (*directory.iterdir(), zipped):
        memory.pipe(f"/hub/e/{path.name}", path.read_bytes())
    memory.pipe("/hub/e/unnamed.bin", b"not named by the manifest")
    address = "memory://hub/e/engines.zip" if as_zip else "memory://hub/e"
    with pytest.raises(ManifestError, match="needs a digest"):
        local_engine_dir(address, cache=cache)
    digest = pinned(zipped if as_zip else directory).rpartition("=")[2]
    found = local_engine_dir(f"{address}#sha256={digest.upper()}", cache=cache)
    assert names_in(found) == names_in(directory)
    memory.store.clear()
    assert local_engine_dir(f"{address}#sha256={digest}", cache=cache) == found
    with pytest.raises(InputError, match="there is nothing at memory://hub/e"):
        local_engine_dir(f"{address}#sha256={'0' * 64}", cache=cache)


def test_local_dir_of_an_address_checks_each_file(directory: Path, cache: Path) -> None:
    digest = pinned(directory)
    (directory / "propagation.onnx").write_bytes(b"another")
    with pytest.raises(ManifestError, match=r"propagation\.onnx in file://.* has changed"):
        local_engine_dir(f"file://{digest}", cache=cache)
    assert names_in(cache) == set()


def test_local_dirs_of_many_threads_at_once_are_one(zipped: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: local_engine_dir(zipped, cache=cache), range(8)))
    assert len(found) == 1
    assert {name for name in names_in(cache) if not name.startswith("zip-")} == {found.pop().name}


def test_hub_cache_of_links_opens_by_each_way(directory: Path, tmp_path: Path, cache: Path) -> None:
    """A hub keeps blobs by digest, and a snapshot of links to them."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1a2b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in directory.iterdir():
        blob = blobs / sha256_of_file(path)
        path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    save_zip(snapshot, tmp_path / "hub.zip")
    pin = pinned(snapshot)
    for source in (snapshot, pin, f"file://{pin}", tmp_path / "hub.zip"):
        with open_engines(local_engine_dir(source, cache=cache), backend="cpu") as engines:
            rgb_prob = np.ones((1, 4, 65, 65), np.float32)
            assert engines.propagation.run({"rgb_prob": rgb_prob})["prob"].mean() == 1.0


def test_checkpoint_that_is_a_zip_keeps_its_hint(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ManifestError, match="is a checkpoint, not an engine directory"):
        local_engine_dir(tmp_path / "a.pth")


def test_zip_without_a_home_is_one_line(zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "user_cache_dir", lambda name: None)
    with pytest.raises(ManifestError, match="XDG_CACHE_HOME"):
        local_engine_dir(zipped)

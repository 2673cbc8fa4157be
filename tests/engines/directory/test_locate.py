"""Engine directories by name: the installed weights, folders, zips, addresses."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from mpn.engines.directory import locate
from mpn.engines.directory.locate import default_engine_dir, is_installed_weights
from mpn.errors import ManifestError
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

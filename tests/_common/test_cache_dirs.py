from __future__ import annotations

import pwd
import sys
from pathlib import Path

import pytest

from mpn._common.cache_dirs import user_cache_dir
from mpn.engines.tensorrt.plans.store import user_plans_dir
from mpn.runtime.run_options import default_finetune_cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="folders of Linux")


@pytest.mark.parametrize(
    ("xdg", "expected"),
    [
        ("/cache", "/cache/mpn-runtime"),
        ("", "/home/me/.cache/mpn-runtime"),
        (None, "/home/me/.cache/mpn-runtime"),
    ],
)
def test_cache_dir_on_linux_is_that_of_0_1_0(
    monkeypatch: pytest.MonkeyPatch, xdg: str | None, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert user_cache_dir("cuda") == Path(expected, "cuda")
    assert user_plans_dir() == Path(expected, "plans")
    assert default_finetune_cache() == Path(expected, "adapt")


def test_cache_dir_without_a_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert user_cache_dir("plans") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")  # control: a home is not needed then
    assert user_cache_dir("plans") == Path("/cache/mpn-runtime/plans")

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpn._common import cores
from mpn._common.cores import limit_library_threads, limited_cores, usable_cores

V1 = "3:cpuset:/x\n1:cpu,cpuacct:/host/c"


@pytest.mark.parametrize(
    ("groups", "files", "quotas", "usable"),
    [
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, [1.5], 2),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "300000 100000"}, [3, 1.5], 2),
        ("0::/a", {"a/cpu.max": "50000 100000"}, [0.5], 1),
        ("0::/a", {"a/cpu.max": "max 100000"}, [], 4),
        ("0::/a", {"a/cpu.max": "damaged"}, [], 4),
        ("0::/host/c", {"cpu.max": "200000 100000"}, [2], 2),
        (V1, {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, [1.5], 2),
        (V1, {"cpu/host/c/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_quota_us": "-1",
              "cpu/host/c/cpu.cfs_period_us": "100000"}, [1.5], 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, [], 4),
        ("", {}, [], 4),
    ],
)  # fmt: skip
def test_quota_of_a_group_or_its_parent_limits_the_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    files: dict[str, str],
    quotas: list[float],
    usable: int,
) -> None:
    """Use a host of 64 cores of which the affinity leaves 4."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "membership").write_text(groups)
    found = list(cores._cpu_quotas(tmp_path, tmp_path / "membership"))
    assert found == quotas
    assert not list(cores._cpu_quotas(tmp_path / "none", tmp_path / "membership"))
    monkeypatch.setattr(cores, "_cpu_quotas", lambda *_: iter(found))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert usable_cores() == limited_cores() == usable
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert usable_cores() == 1


def test_libraries_are_limited_on_a_part_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    limit_library_threads()
    assert limited_cores() is None
    assert environment == {"OMP_NUM_THREADS": "3"}
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    limit_library_threads()
    assert environment == {
        "OMP_NUM_THREADS": "3",  # was given
        "OPENBLAS_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OPENCV_FOR_THREADS_NUM": "2",
    }

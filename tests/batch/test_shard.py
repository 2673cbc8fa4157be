from __future__ import annotations

import pytest

from mpn.batch.shard import Shard
from mpn.errors import InputError


def test_shards_are_a_partition_of_a_thousand_names() -> None:
    names = [f"shot {index:04d}" for index in range(1000)]
    parts = [[name for name in names if Shard(i, 4).has(name)] for i in (1, 2, 3, 4)]
    assert sorted(name for part in parts for name in part) == names
    assert all(200 < len(part) < 300 for part in parts)


def test_shard_of_a_name_does_not_change() -> None:
    """Shards of one batch may run with other versions of the package."""
    found = [next(i for i in (1, 2, 3) if Shard(i, 3).has(name)) for name in "abcdef"]
    assert found == [2, 2, 3, 3, 3, 1]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/4", "1/4/2", "-1/4"])
def test_shard_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shard must be i/n"):
        Shard.from_text(text)

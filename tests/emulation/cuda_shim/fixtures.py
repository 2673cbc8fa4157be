"""Provide the kernels of the package, built for the CPU once per session."""

from __future__ import annotations

import os

import pytest

from tests.emulation.cuda_shim.shim import Shim


@pytest.fixture(scope="session")
def shim(request: pytest.FixtureRequest) -> Shim:
    """Provide the shim; skip if g++ is missing.

    With MPN_REQUIRE_CUDA_TOOLS=1 (set in CI), a missing g++ is a failure.
    """
    if not Shim.is_available():
        need_or_skip("g++ is not installed: it compiles the kernels for the CPU")
    cache = request.config.cache
    assert cache is not None
    return Shim(cache.mkdir("cuda_shim"))


def need_or_skip(reason: str) -> None:
    if os.environ.get("MPN_REQUIRE_CUDA_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)

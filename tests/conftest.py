"""Fixtures of the suite, and the rule for data outside the repository."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MPN_SHARED_DIR", REPOSITORY.parent / "shared"))


def shared_path(*parts: str) -> Path:
    """Return a path in the shared data folder; skip the test if it is absent.

    With MPN_REQUIRE_SHARED=1 (set in CI) its absence is a failure instead.
    """
    path = SHARED.joinpath(*parts)
    if not path.exists():
        reason = f"{'/'.join(parts)} is not on this machine (shared data, see CONTRIBUTING.md)"
        if os.environ.get("MPN_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Handle SIGINT and SIGHUP as in the foreground.

    A shell without job control starts background jobs with SIGINT ignored, nohup with SIGHUP
    ignored, and the package leaves ignored signals alone.
    """
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    if hasattr(signal, "SIGHUP"):  # not on Windows
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def golden() -> Path:
    return shared_path("golden")


@pytest.fixture(scope="session")
def davis_root() -> Path:
    return shared_path("data", "davis")

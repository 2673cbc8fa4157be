"""Find the engine directory of the installed weights."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from mpn.engines.directory.files import MANIFEST_NAME
from mpn.errors import ManifestError

WEIGHTS_PACKAGE = "mpn_weights_lite"
"""Package of the weights; it holds the engine directory ``engines/`` and no code."""

_CHECKOUT = Path(__file__).resolve().parents[4]


def default_engine_dir() -> Path:
    """Return the engine directory of the package mpn-weights-lite.

    A checkout of the repository takes the weights of the checkout, installed or not.

    Raises:
        ManifestError: If it is not installed.
    """
    for package in _weights_packages():
        if (package / "engines" / MANIFEST_NAME).is_file():
            return package / "engines"
    raise ManifestError(
        "no engines are installed: pip install mpn-weights-lite (6 MB, CC BY-NC 4.0: not for "
        "commercial use), or give an engine directory of mpn-export with --engine-dir"
    )


def is_installed_weights(path: Path) -> bool:
    """Return whether a path lies in the package of the weights.

    No run writes into it.
    """
    return any(path.is_relative_to(package) for package in _weights_packages())


def _weights_packages() -> Iterator[Path]:
    yield _CHECKOUT / "weights" / "lite" / "src" / WEIGHTS_PACKAGE
    spec = find_spec(WEIGHTS_PACKAGE)
    for folder in () if spec is None else spec.submodule_search_locations or ():
        yield Path(folder).resolve()

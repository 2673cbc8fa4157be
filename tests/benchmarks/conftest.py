"""The scripts in benchmarks/ are no package: they import each other by name, as tests do."""

from __future__ import annotations

import sys

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

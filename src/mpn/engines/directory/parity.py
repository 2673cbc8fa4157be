"""Read ``parity.json``: differences between the graphs and their PyTorch modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn._common.records import read_json, record_from_json, schema_version_of
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.engines.directory.files import resolve_inside
from mpn.errors import ManifestError

PARITY_NAME = "parity.json"
PARITY_SCHEMA = 1
"""The schema that this version reads."""


@dataclass(frozen=True)
class ParityMeasure:
    """One measure of one graph, at the set of inputs that came nearest to its limit.

    Attributes:
        role: The graph's role.
        name: Name of the measure, for example ``"max_relative"``.
        value: The value that was measured.
        limit: The value that was allowed.
        cases: How many sets of inputs were compared.
    """

    role: str
    name: str
    value: float
    limit: float
    cases: int


@dataclass(frozen=True)
class ParityReport:
    """Content of ``parity.json``.

    Attributes:
        reference: The reference of the comparison; None if nothing was compared.
        inputs: The inputs of the comparison, or the reason for none.
        measures: The worst of each measure of each role.
        document: The file's whole content.
    """

    reference: str | None
    inputs: str
    measures: tuple[ParityMeasure, ...]
    document: Mapping[str, Any]


@dataclass(frozen=True)
class _Verdict:
    verified: bool


@dataclass(frozen=True)
class _Skipped:
    skipped: str


@dataclass(frozen=True)
class _Measure:
    measure: str
    value: float
    limit: float


@dataclass(frozen=True)
class _Case:
    measures: tuple[_Measure, ...]


@dataclass(frozen=True)
class _Role:
    cases: tuple[_Case, ...]


@dataclass(frozen=True)
class _Verified:
    reference: str
    inputs: str
    roles: Mapping[str, _Role]


def load_parity(directory: Path) -> ParityReport | None:
    """Read the parity of an engine directory; None if it has no ``parity.json``.

    Raises:
        ManifestError: If the file is damaged or of an unknown schema.
    """
    path = directory / PARITY_NAME
    if not path.exists():
        return None
    try:
        value = read_json(resolve_inside(directory, PARITY_NAME), ManifestError)
        return _report_from_json(value)
    except ManifestError as error:
        text = one_line(error, LONGEST_MESSAGE)
        raise ManifestError(f"{path}: {text}; export the directory again") from error


def _report_from_json(value: Any) -> ParityReport:
    schema_version = schema_version_of(value, ManifestError)
    if schema_version != PARITY_SCHEMA:
        raise ManifestError(
            f"schema_version {schema_version} is unknown: this version of mpn-runtime reads "
            f"{PARITY_SCHEMA}"
        )
    if not record_from_json(value, _Verdict, ManifestError).verified:
        skipped = record_from_json(value, _Skipped, ManifestError).skipped
        return ParityReport(None, skipped, (), value)
    parity = record_from_json(value, _Verified, ManifestError)
    measures = [
        measure
        for role, entry in parity.roles.items()
        for measure in _worst_measures(role, entry.cases)
    ]
    return ParityReport(parity.reference, parity.inputs, tuple(measures), value)


def _worst_measures(role: str, cases: tuple[_Case, ...]) -> list[ParityMeasure]:
    worst: dict[str, ParityMeasure] = {}
    for case in cases:
        for measure in case.measures:
            found = ParityMeasure(role, measure.measure, measure.value, measure.limit, len(cases))
            known = worst.get(found.name)
            # All are within their limits, or nothing would have been exported: nearest is worst,
            # whether the limit is a largest difference or a smallest overlap.
            if known is None or abs(found.value - found.limit) < abs(known.value - known.limit):
                worst[found.name] = found
    return list(worst.values())

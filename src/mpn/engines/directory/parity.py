"""Reading ``parity.json``: how far each graph was from its PyTorch module when it was exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.schema import Fields, json_from_text
from mpn.errors import ManifestError

PARITY_NAME = "parity.json"
PARITY_SCHEMA = 1
"""The schema that this version reads."""


@dataclass(frozen=True)
class ParityMeasure:
    """One measure of one graph, at the set of inputs where it came nearest to its limit.

    Attributes:
        role: Which graph.
        name: What was measured, for example ``"max_relative"``.
        value: What was found.
        limit: What was allowed.
        cases: How many sets of inputs were compared.
    """

    role: str
    name: str
    value: float
    limit: float
    cases: int


@dataclass(frozen=True)
class ParityReport:
    """What ``parity.json`` says.

    Attributes:
        reference: What the graphs were compared with; None if they were not compared.
        inputs: What they were compared on, or why they were not.
        measures: The worst of each measure of each role.
        document: The file's whole content.
    """

    reference: str | None
    inputs: str
    measures: tuple[ParityMeasure, ...]
    document: Mapping[str, Any]


def load_parity(directory: Path) -> ParityReport | None:
    """Read the parity of an engine directory; None if it has no ``parity.json``.

    Raises:
        ManifestError: If the file is damaged or of an unknown schema.
    """
    path = directory / PARITY_NAME
    if not path.exists():
        return None
    try:
        text = resolve_inside(directory, PARITY_NAME).read_text(encoding="utf-8")
        return _report_from_json(json_from_text(text))
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: invalid JSON (no UTF-8 text)") from error
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}; export the directory again") from error


def _report_from_json(value: Any) -> ParityReport:
    fields = Fields(value)
    schema_version = fields.integer("schema_version")
    if schema_version != PARITY_SCHEMA:
        raise ManifestError(
            f"schema_version {schema_version} is unknown: this version of mpn-runtime reads "
            f"{PARITY_SCHEMA}"
        )
    if not fields.boolean("verified"):
        return ParityReport(None, fields.string("skipped"), (), value)
    roles = fields.object("roles")
    measures = [
        measure for role in roles.names for measure in _worst_measures(role, roles.object(role))
    ]
    return ParityReport(fields.string("reference"), fields.string("inputs"), tuple(measures), value)


def _worst_measures(role: str, fields: Fields) -> list[ParityMeasure]:
    cases = fields.objects("cases")
    worst: dict[str, ParityMeasure] = {}
    for case in cases:
        for measure in case.objects("measures"):
            found = ParityMeasure(
                role=role,
                name=measure.string("measure"),
                value=measure.number("value"),
                limit=measure.number("limit"),
                cases=len(cases),
            )
            known = worst.get(found.name)
            # All are within their limits, or nothing would have been exported: nearest is worst,
            # whether the limit is a largest difference or a smallest overlap.
            if known is None or abs(found.value - found.limit) < abs(known.value - known.limit):
                worst[found.name] = found
    return list(worst.values())

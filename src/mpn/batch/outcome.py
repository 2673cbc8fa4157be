"""Define what crosses the boundary of a process: settings and outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mpn.engines.directory.locate import local_engine_dir
from mpn.engines.directory.manifest import Manifest, load_manifest

if TYPE_CHECKING:
    from mpn.engines.open import Backend

State = Literal["done", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of all units of a batch.

    Attributes:
        engine_dir: See :func:`mpn.engines.directory.locate.local_engine_dir`.
        backend: See :func:`mpn.engines.open.open_engines`.
        threads: CPU threads of each worker; None for all cores.
        build: Build plans that are missing.
        resume: Continue an interrupted video at its last frame. False: run it again from its start,
            so that its masks do not depend on the interruption.
        fresh: Run units that are done, too.
    """

    engine_dir: str | None = None
    backend: Backend = "auto"
    threads: int | None = None
    build: bool = True
    resume: bool = False
    fresh: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Settings:
        """Convert the result of :meth:`as_json`."""
        return cls(**value)

    def manifest(self) -> Manifest:
        """Read the manifest of the engines.

        Raises:
            ManifestError: If it cannot be used.
        """
        return load_manifest(local_engine_dir(self.engine_dir))


@dataclass(frozen=True, kw_only=True)
class UnitOutcome:
    """Outcome of one attempt at a unit.

    Attributes:
        name: Of the unit.
        state: ``"skipped"``: its results were complete already.
        frames: Frames with a result.
        wall_s: Seconds of the attempt.
        reason: Why it failed or was skipped, one line; otherwise empty.
        attempt: From 1.
        worker: Name of the worker.
        may_retry: Whether another attempt can succeed with the same inputs.
        is_disk_full: Whether it failed because the disk is full, as all others would.
        is_in_use: Whether it failed because another run has its folder.
        is_lost: Whether its worker ended, so that it has not written error.json.
        warnings: Lines of run.json for the user.
    """

    name: str
    state: State
    frames: int = 0
    wall_s: float = 0.0
    reason: str = ""
    attempt: int = 1
    worker: str = ""
    may_retry: bool = False
    is_disk_full: bool = False
    is_in_use: bool = False
    is_lost: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def fps(self) -> float:
        """Frames a second of the attempt."""
        return self.frames / self.wall_s if self.wall_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, for :meth:`from_json`; with ``fps``."""
        value = asdict(self)
        return {
            **value,
            "wall_s": round(self.wall_s, 3),
            "fps": round(self.fps, 3),
            "warnings": list(self.warnings),
        }

    def record(self) -> dict[str, Any]:
        """Return the fields for done.json or error.json."""
        left_out = {"name", "state", "is_disk_full", "is_in_use", "is_lost"}
        if self.state == "done":
            left_out |= {"reason", "may_retry"}
        return {name: each for name, each in self.as_json().items() if name not in left_out}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> UnitOutcome:
        """Convert the result of :meth:`as_json`."""
        given = {name: each for name, each in value.items() if name != "fps"}
        return cls(**{**given, "warnings": tuple(value["warnings"])})

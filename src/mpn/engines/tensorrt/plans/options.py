"""Options of a plan, and the numbers of objects it is optimised for."""

from __future__ import annotations

from dataclasses import dataclass

from mpn.engines.spec import OBJECTS_AXIS, EngineSpec
from mpn.errors import EngineError, InputError

OPTIMAL_OBJECTS = 3
"""A DAVIS-2017 sequence has two to three objects on average; one object has its own profile."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Build options of a plan.

    Attributes:
        refittable: Allow refitting the trained weights without a new build. Needs a GPU while
            building, and may run slower.
        half_inputs: Take inputs in half precision if the graph only uses their half-precision
            value; the plan's record lists them.
        version_compatible: Also run with later versions of the same major version.
        hardware_compatible: Also run on other GPUs from Ampere on. Plans for RTX always do.
        tf32: Allow float32 layers to keep 10 bits of the mantissa. Off, as with onnxruntime, so
            that backends agree.
        optimization_level: Search effort of the builder, 0 to 5; None for the library's default.
        workspace_mib: Largest scratch memory of a layer; None for all memory.
    """

    refittable: bool = False
    half_inputs: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    tf32: bool = False
    optimization_level: int | None = None
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        level = self.optimization_level
        if level is not None and not 0 <= level <= 5:
            raise InputError(f"the builder's optimisation level is 0 to 5, got {level}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f"the workspace must be at least 1 MiB, got {self.workspace_mib}")


@dataclass(frozen=True)
class ObjectProfile:
    """Range of numbers of objects of a plan, and the number it is optimised for."""

    least: int
    optimal: int
    most: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """(least, optimal, most)."""
        return (self.least, self.optimal, self.most)


def object_profiles(spec: EngineSpec) -> tuple[ObjectProfile, ...]:
    """Return the optimisation profiles of an engine.

    One object is the most frequent number and has a separate profile. The other profile covers
    two to ``spec.max_objects``.

    Returns:
        An empty tuple if the engine has no ``objects`` axis, because all its sizes are fixed.

    Raises:
        EngineError: If it has that axis and no ``max_objects``, or another dynamic axis.
    """
    axes = {axis for tensor in spec.inputs for axis in tensor.dynamic_axes.values()}
    if axes - {OBJECTS_AXIS}:
        raise EngineError(
            f"the {spec.role} engine has dynamic axes {sorted(axes)}, a plan takes "
            f"'{OBJECTS_AXIS}' only: export it again"
        )
    if not axes:
        return ()
    if spec.max_objects is None:
        raise EngineError(
            f"the {spec.role} engine has no largest number of objects: export it again"
        )
    single = ObjectProfile(1, 1, 1)
    if spec.max_objects == 1:
        return (single,)
    several = ObjectProfile(2, min(max(OPTIMAL_OBJECTS, 2), spec.max_objects), spec.max_objects)
    return (single, several)


def profile_for(profiles: tuple[ObjectProfile, ...], objects: int) -> int:
    """Return the index of the profile for a number of objects; 0 without profiles.

    Raises:
        EngineError: If no profile covers the number.
    """
    if not profiles:
        return 0
    for index, profile in enumerate(profiles):
        if profile.least <= objects <= profile.most:
            return index
    raise EngineError(
        f"a plan for up to {profiles[-1].most} objects was given {objects}: export with a larger "
        "--max-objects, or run them in several batches"
    )

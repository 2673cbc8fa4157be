"""Choose the models that separate an object by its first mask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mpn.engines.spec import PROPAGATION_INPUTS, EngineSpec, Role
from mpn.errors import EngineError
from mpn.runtime.options import ResolvedOptions


@dataclass(frozen=True)
class OneShotModels:
    """Models in use.

    Attributes:
        target: Whether the target model runs.
        osvos: Whether OSVOS runs. It then re-detects lost objects and is blended, not the target
            model.
    """

    target: bool
    osvos: bool

    def every(self, options: ResolvedOptions) -> int:
        """Return the interval in frames of the model whose maps are used."""
        return options.osvos.every if self.osvos else options.target.every

    def blend_weight(self, options: ResolvedOptions) -> float:
        """Return the weight of the maps in the average with the propagation."""
        return options.osvos.blend_weight if self.osvos else options.target.blend_weight


def one_shot_models(options: ResolvedOptions, roles: Collection[Role]) -> OneShotModels:
    """Resolve ``options.one_shot`` for an engine directory.

    Args:
        options: Options in force.
        roles: Roles of the directory.

    Raises:
        EngineError: If a requested model has no engine.
    """
    wanted = options.one_shot
    if wanted == "auto":
        wanted = "target" if "features" in roles else "osvos"
    target = wanted in ("target", "both")
    osvos = wanted in ("osvos", "both") and options.osvos.mode != "off"
    if target and "features" not in roles:
        raise EngineError(
            f"option one_shot is '{options.one_shot}', but the engine directory has no features "
            "engine: export one with it, or use one_shot 'osvos' or 'off'"
        )
    is_demanded = options.one_shot in ("osvos", "both") or options.osvos.mode != "auto"
    if osvos and "osvos" not in roles:
        if is_demanded:
            raise EngineError(
                f"OSVOS is requested (one_shot '{options.one_shot}', osvos.mode "
                f"'{options.osvos.mode}'), but no OSVOS engine is open: export the engine "
                "directory with one, or use one_shot 'off'"
            )
        osvos = False
    return OneShotModels(target, osvos)


def takes_score(propagation: EngineSpec) -> bool:
    """Return whether a propagation network takes the score of the target model."""
    return propagation.input_names == (PROPAGATION_INPUTS[5],)

"""The variants of a pipeline that a benchmark measures side by side: which stages are switched on.

A variant's name is ``plain`` (flow, warp, propagation, merge) or the stages added to it, joined by
``+``: ``osvos``, ``crf``, ``osvos+crf``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpn.engines.manifest import Manifest
from mpn.errors import InputError
from mpn.runtime.options import PipelineOptions

PLAIN = "plain"
ADDITIONS = ("osvos", "crf")
"""Stages that a variant can add, in the order in which its name has them."""


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        name: See the module.
        options: In force: what the variant says, and otherwise what the manifest advises.
    """

    name: str
    options: PipelineOptions


def check_variant_names(names: Sequence[str]) -> None:
    """Raise InputError unless these are names of variants, each once."""
    for name in names:
        _additions(name)
    if not names or len(set(names)) < len(names):
        raise InputError(f"variants must be given, each once, got {', '.join(names) or 'none'}")


def variants_of(manifest: Manifest, names: Sequence[str] | None = None) -> tuple[Variant, ...]:
    """The variants asked for, or all that an engine directory can run.

    Args:
        manifest: Of the engine directory.
        names: Names of variants; None for all.

    Raises:
        InputError: If a name is no variant's, is given twice, or needs an engine that is not there.
        ManifestError: If the manifest's advice does not fit the options.
    """
    if names is None:
        names = [PLAIN, "osvos", "crf", "osvos+crf"]
        if "osvos" not in manifest.roles:
            names = [PLAIN, "crf"]
    check_variant_names(names)
    return tuple(_variant(name, manifest) for name in names)


def _variant(name: str, manifest: Manifest) -> Variant:
    additions = _additions(name)
    given: dict[str, Any] = {"osvos": "off", "crf": "crf" in additions}
    if "osvos" in additions:
        if "osvos" not in manifest.roles:
            raise InputError(
                f"variant '{name}' needs OSVOS, which the engine directory '{manifest.name}' has "
                "not: leave it out, or export OSVOS with the others"
            )
        advised = PipelineOptions().with_defaults(manifest.runtime_defaults).osvos
        given["osvos"] = "auto" if advised == "off" else advised
    return Variant(name, PipelineOptions(**given).with_defaults(manifest.runtime_defaults))


def _additions(name: str) -> tuple[str, ...]:
    if name == PLAIN:
        return ()
    additions = tuple(name.split("+"))
    if additions != tuple(stage for stage in ADDITIONS if stage in additions):
        raise InputError(
            f"'{name}' is no variant: {PLAIN}, or of {', '.join(ADDITIONS)} in this order, joined "
            "by +"
        )
    return additions

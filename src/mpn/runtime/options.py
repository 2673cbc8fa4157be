"""Define the options of the pipeline, in groups, and resolve them.

Options that the caller does not give are UNSET. :meth:`PipelineOptions.with_defaults` resolves
them: a given value wins, else the advice in the manifest of the engine directory, else the
documented default. The pipeline itself works with :class:`ResolvedOptions`, without UNSET.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from mpn._common.options import UNSET as UNSET
from mpn._common.options import GivenRepr, Unset, refuse_old_fields
from mpn._common.validation import check_bool, check_choice, check_int, check_number, is_int
from mpn.engines.directory.entries import FinetuneOptimizer as FinetuneOptimizer
from mpn.engines.directory.entries import FinetuneScope as FinetuneScope
from mpn.engines.spec import ROI_SIZE_STEP, Role
from mpn.errors import InputError, ManifestError
from mpn.runtime.crf.options import CrfOptions as CrfOptions
from mpn.runtime.crf.options import ResolvedCrf as ResolvedCrf

NATIVE_SIZE = -1
"""Short side of the working size that selects the size of the input."""

MIN_SIDE_PX = 16
"""Smallest side of a video and of a working frame: below it flow and crops have too few pixels."""

OsvosMode = Literal["auto", "blend", "redetect-only", "off"]
OneShot = Literal["auto", "target", "osvos", "both", "off"]

T = TypeVar("T")

OPTIONS_OF_0_1: Mapping[str, str] = {
    "mirror": "flip_tta",
    "osvos_threshold": "osvos.threshold",
    "osvos_every": "osvos.every",
    "ensemble_weight": "osvos.blend_weight",
    "doubt_confidence": "osvos.confidence_min",
    "retrieve_area_frac": "redetect.area_frac_min",
    "retrieve_colour": "redetect.colour_min",
    "retrieve_agreement": "redetect.agreement_min",
    **{f"crf_{option.name}": f"crf.{option.name}" for option in fields(CrfOptions)},
}
"""Name in version 0.1 -> name now. Manifests keep the old names and are translated when read."""

CONSTANTS_OF_0_1: Mapping[str, float] = {"doubt_area_factor": 2.0, "retrieve_iou_max": 0.3}
"""Options of version 0.1 that are constants now, and their values."""

_MODES_OF_0_1 = {"retrieve-only": "redetect-only"}


def _check_shares(options: object, prefix: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not UNSET:
            check_number(f"option {prefix}{name}", value, least=0, most=1)


def _check_group(name: str, value: object, cls: type, example: str) -> None:
    if not isinstance(value, cls):
        raise InputError(f"option {name} must be {example}, got {value!r}")


def _refuse_values_of_0_1(osvos: object, crf: object) -> None:
    if isinstance(osvos, str):
        mode = _MODES_OF_0_1.get(osvos, osvos)
        raise InputError(f"option osvos={osvos!r} is now osvos=OsvosOptions(mode={mode!r})")
    if isinstance(crf, bool):
        raise InputError(f"option crf={crf} is now crf={'CrfOptions()' if crf else 'None'}")


@dataclass(frozen=True, kw_only=True, repr=False)
class OsvosOptions(GivenRepr):
    """Set when OSVOS runs and how it is blended. It needs an OSVOS engine.

    Attributes:
        mode: ``"blend"``: average OSVOS with the propagation inside the ROI of each object, and
            redetect lost objects. ``"redetect-only"``: redetect lost objects. ``"off"``: do not run
            OSVOS. ``"auto"``: ``"blend"`` if each object has a fine-tuned OSVOS, otherwise
            ``"redetect-only"``, since the common network does not separate objects.
            [default: "auto"]
        threshold: Probability of OSVOS that is mapped to 0.5, above 0 and below 1: the odds are
            multiplied by (1 - threshold) / threshold. Its class-balanced loss overestimates
            foreground; the public TensorFlow demo thresholds at 162/255. [default: 0.5]
        every: Run OSVOS every N frames, at least 1, and in each frame for objects that are lost or
            uncertain. 1 is the paper. [default: 1]
        blend_weight: Weight of OSVOS in the blend, 0..1; 0.5 is the average of the paper. The blend
            is 0 outside the ROI: the propagation is 0 there, so that no weight up to 0.5 reaches a
            probability of 0.5. [default: 0.5]
        confidence_min: An object is uncertain if the mean probability of its pixels in the previous
            frame was below this, 0..1; see :mod:`mpn.runtime.tracks`. 0 disables the test.
            [default: 0.7]

    Raises:
        InputError: If a value has another type or is out of range.
    """

    mode: OsvosMode | Unset = UNSET
    threshold: float | Unset = UNSET
    every: int | Unset = UNSET
    blend_weight: float | Unset = UNSET
    confidence_min: float | Unset = UNSET

    def __post_init__(self) -> None:
        if self.mode in _MODES_OF_0_1:
            raise InputError(
                f"option osvos.mode '{self.mode}' is now '{_MODES_OF_0_1[str(self.mode)]}'"
            )
        if self.mode is not UNSET:
            check_choice("option osvos.mode", self.mode, get_args(OsvosMode))
        if self.threshold is not UNSET:
            check_number("option osvos.threshold", self.threshold, above=0, below=1)
        if self.every is not UNSET:
            check_int("option osvos.every", self.every, least=1, kind="a number of frames")
        _check_shares(self, "osvos.", ("blend_weight", "confidence_min"))


@dataclass(frozen=True, kw_only=True)
class ResolvedOsvos(OsvosOptions):
    """A value for each of :class:`OsvosOptions`, by default the documented one."""

    mode: OsvosMode = "auto"
    threshold: float = 0.5
    every: int = 1
    blend_weight: float = 0.5
    confidence_min: float = 0.7


@dataclass(frozen=True, kw_only=True, repr=False)
class RedetectOptions(GivenRepr):
    """Set which components of the OSVOS foreground are accepted as a lost object.

    Attributes:
        area_frac_min: Smallest area of a component, as a fraction of the object's area in the frame
            where it was given, 0..1. Source: VS-ReID. [default: 0.1]
        colour_min: Smallest mean log-likelihood ratio of the component's colours, object against
            its surroundings in the frame where it was given, -2..2; -2 accepts any. See
            :mod:`mpn.runtime.host.reliability`. VS-ReID compares appearance by a network.
            [default: 0.4]
        agreement_min: A tracked object is checked too: it is redetected elsewhere, or uncertain, if
            the mean probability of its fine-tuned OSVOS over its pixels is below this, 0..1, or its
            colours fail ``colour_min``. 0 disables the check. [default: 0.2]

    Raises:
        InputError: If a value has another type or is out of range.
    """

    area_frac_min: float | Unset = UNSET
    colour_min: float | Unset = UNSET
    agreement_min: float | Unset = UNSET

    def __post_init__(self) -> None:
        _check_shares(self, "redetect.", ("area_frac_min", "agreement_min"))
        if self.colour_min is not UNSET:
            check_number("option redetect.colour_min", self.colour_min, least=-2, most=2)


@dataclass(frozen=True, kw_only=True)
class ResolvedRedetect(RedetectOptions):
    """A value for each of :class:`RedetectOptions`, by default the documented one."""

    area_frac_min: float = 0.1
    colour_min: float = 0.4
    agreement_min: float = 0.2


_MOST_GROWTH = 100
"""Sides of an ROI: far more than a frame."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TargetOptions(GivenRepr):
    """Set when the target model runs and is updated. It needs a features engine.

    Attributes:
        every: Run the features engine every N frames, at least 1, and in each frame with a lost
            object; in the frames between, the scores are warped by the flow. [default: 2]
        update_every: Update the classifiers every N frames, from objects whose mask is confident;
            0: never. [default: 4]
        memory: Frames with masks of the pipeline that are kept for the updates, at least 1.
            [default: 4]
        given_weight: Share of the frames given by the user in the loss of an update, 0..1.
            [default: 0.5]
        confidence_min: An object is updated if the mean probability of its pixels is at least
            this, 0..1; see :mod:`mpn.runtime.tracks`. [default: 0.9]
        ridge: Weight of the squared norm of a classifier, above 0. [default: 0.01]
        agreement_min: A tracked object is redetected at a component of a clearly higher score, or
            uncertain, if the mean score over the pixels of its warped mask is below this, 0..1;
            it is lost below a third of it. 0 disables the check. [default: 0.6]
        roi_growth: The ROI is extended to grid points that belong to the object by their score,
            up to this share of its width or height on each side and frame, 0..100; see
            :func:`mpn.runtime.host.target.grown_rois`. 0: never. [default: 0.25]
        blend_weight: Weight of the score in the average with the propagation inside the ROI, 0..1,
            if the propagation network does not take the score as an input. [default: 0.35]

    Raises:
        InputError: If a value has another type or is out of range.
    """

    every: int | Unset = UNSET
    update_every: int | Unset = UNSET
    memory: int | Unset = UNSET
    given_weight: float | Unset = UNSET
    confidence_min: float | Unset = UNSET
    ridge: float | Unset = UNSET
    agreement_min: float | Unset = UNSET
    roi_growth: float | Unset = UNSET
    blend_weight: float | Unset = UNSET

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("update_every", 0), ("memory", 1)):
            value = getattr(self, name)
            if value is not UNSET:
                check_int(f"option target.{name}", value, least=least, kind="a number of frames")
        shares = ("given_weight", "confidence_min", "agreement_min", "blend_weight")
        _check_shares(self, "target.", shares)
        if self.ridge is not UNSET:
            check_number("option target.ridge", self.ridge, above=0)
        if self.roi_growth is not UNSET:
            check_number("option target.roi_growth", self.roi_growth, least=0, most=_MOST_GROWTH)


@dataclass(frozen=True, kw_only=True)
class ResolvedTarget(TargetOptions):
    """A value for each of :class:`TargetOptions`, by default the documented one."""

    every: int = 2
    update_every: int = 4
    memory: int = 4
    given_weight: float = 0.5
    confidence_min: float = 0.9
    ridge: float = 0.01
    agreement_min: float = 0.6
    roi_growth: float = 0.25
    blend_weight: float = 0.35


FINETUNABLE_ROLES: tuple[Role, ...] = ("propagation", "osvos")
"""Networks that can be fine-tuned, in the order in which they are."""

_SMALLEST_SIZE_PX = 65
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """Parameters to fine-tune one network.

    Attributes:
        steps: Steps of the optimiser.
        size_px: Side of the square training crops, in pixels.
        batch: Crops per step.
        learning_rate: Highest learning rate. It rises in the first steps and falls to zero at the
            end of the steps, or of the seconds if those end first.
        scope: ``"all"``: train each weight; ``"head"``: train the layers after a frozen trunk.
    """

    steps: int
    size_px: int
    batch: int
    learning_rate: float
    scope: FinetuneScope = "all"


DEFAULT_RECIPES: Mapping[Role, FinetuneRecipe] = {
    "propagation": FinetuneRecipe(steps=80, size_px=161, batch=4, learning_rate=5e-5),
    "osvos": FinetuneRecipe(steps=40, size_px=192, batch=4, learning_rate=3e-4),
}
"""Recipes with AdamW. docs/finetuning.md has the measurements behind the numbers."""

SGD_RATES: Mapping[Role, float] = {"propagation": 3e-3, "osvos": 1e-2}
"""Default learning rates if the step was exported with SGD."""


@dataclass(frozen=True, kw_only=True, repr=False)
class FinetuneOptions(GivenRepr):
    """Fine-tune networks on the given frame, one set of weights per object.

    None takes the value of the role's :data:`DEFAULT_RECIPES`. The default budget is in steps: the
    same seed then gives the same weights. A budget in seconds depends on the machine.

    Attributes:
        roles: Networks to fine-tune, of those that the engine directory can fine-tune.
            [default: propagation and OSVOS]
        steps: Steps per object and network, at least 1. [default: by role, 80 and 40]
        seconds: Wall time per object and network, above 0. Fine-tuning ends after the seconds or
            the steps, whichever come first. [default: no limit]
        size: Side of the training crops in pixels, 16 n + 1, at least 65. OSVOS uses one pixel
            less. [default: by role, 161 and 193]
        scope: ``"all"``: train each weight; ``"head"``: train the layers after a frozen trunk.
            [default: "all"]
        learning_rate: Highest learning rate, above 0. [default: by role and optimiser]
        batch: Crops per step, at least 1. [default: 4]
        seed: Seed of everything random, 0..2^63 - 1. The object's id and the network are mixed in.
            [default: 0]
        cache_dir: Folder that keeps fine-tuned weights for the next run on the same frame; None
            keeps nothing. [default: None]

    Raises:
        InputError: If a value has another type or is out of range.
    """

    roles: tuple[Role, ...] = FINETUNABLE_ROLES
    steps: int | None = None
    seconds: float | None = None
    size: int | None = None
    scope: FinetuneScope | None = None
    learning_rate: float | None = None
    batch: int | None = None
    seed: int = 0
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.roles, tuple) or not self.roles:
            raise InputError(f"option finetune.roles must be a tuple of roles, got {self.roles!r}")
        for role in self.roles:
            if role not in FINETUNABLE_ROLES:
                raise InputError(
                    f"option finetune.roles must be of {', '.join(FINETUNABLE_ROLES)}, got {role!r}"
                )
        if len(set(self.roles)) != len(self.roles):
            raise InputError(
                f"option finetune.roles names a network twice: {', '.join(self.roles)}"
            )
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if value is not None:
                check_int(f"option finetune.{name}", value, least=1, kind="a number")
        if self.size is not None and (
            not is_int(self.size)
            or self.size < _SMALLEST_SIZE_PX
            or (self.size - 1) % ROI_SIZE_STEP
        ):
            raise InputError(
                f"option finetune.size must be 16 n + 1 and at least {_SMALLEST_SIZE_PX} "
                f"(161, 193, 225), got {self.size!r}"
            )
        if self.scope is not None:
            check_choice("option finetune.scope", self.scope, get_args(FinetuneScope))
        for name, kind in (("seconds", "seconds"), ("learning_rate", "a rate")):
            value = getattr(self, name)
            if value is not None:
                check_number(f"option finetune.{name}", value, above=0, kind=kind)
        if not is_int(self.seed) or not 0 <= self.seed <= _LARGEST_SEED:
            raise InputError(
                f"option finetune.seed must be a number of 0..2^63 - 1, got {self.seed!r}"
            )
        if self.cache_dir is not None and not isinstance(self.cache_dir, Path):
            raise InputError(
                f"option finetune.cache_dir must be a path or None, got {self.cache_dir!r}"
            )

    def recipe(self, role: Role, optimizer: FinetuneOptimizer = "adamw") -> FinetuneRecipe:
        """Return the default recipe of a role, changed by the options that are given.

        Args:
            role: The network.
            optimizer: Optimiser of its exported step; the default learning rate depends on it.

        Raises:
            InputError: If the network of this role cannot be fine-tuned.
        """
        if role not in DEFAULT_RECIPES:
            raise InputError(
                f"the {role} network cannot be fine-tuned, only {', '.join(FINETUNABLE_ROLES)}"
            )
        default = DEFAULT_RECIPES[role]
        rate = default.learning_rate if optimizer == "adamw" else SGD_RATES[role]
        size = self.size if role == "propagation" or self.size is None else self.size - 1
        return FinetuneRecipe(
            steps=_or(self.steps, default.steps),
            size_px=_or(size, default.size_px),
            batch=_or(self.batch, default.batch),
            learning_rate=_or(self.learning_rate, rate),
            scope=_or(self.scope, default.scope),
        )


@refuse_old_fields(
    {**OPTIONS_OF_0_1, **{name: f"a constant, {v}" for name, v in CONSTANTS_OF_0_1.items()}}
)
@dataclass(frozen=True, kw_only=True, repr=False)
class PipelineOptions(GivenRepr):
    """Set how the stages of a frame work.

    An option that is not given is UNSET. It then takes the value that the manifest of the engine
    directory advises (``runtime_defaults``), or else its default. A given option always wins, even
    if it equals the default. ``dataclasses.replace`` keeps UNSET options UNSET.

    Attributes:
        size: Short side of the working frame in pixels, at least 16; larger frames are averaged
            down, smaller ones are not enlarged. -1 works at the size of the input. 480 is DAVIS.
            [default: 480]
        threshold: Warped probability above which a pixel counts for the ROI and as tracked, 0..1.
            Source: VS-ReID, whose argmax of two classes is the same. [default: 0.5]
        flow_check_px: Tolerance s of the forward-backward flow check in pixels, at least 0: the
            warped probability is multiplied by exp(-d^2 / (2 t^2)), with d the round-trip error in
            pixels and t = s + half of the flow's length. 0 is the paper: no check, one flow per
            frame instead of two. [default: 0]
        colour_weight: Weight of the colours of the frame where the object was given, as evidence
            for or against the warped probability, at least 0; see
            :mod:`mpn.runtime.host.reliability`. 0 is the paper: no such stage. [default: 0]
        roi_margin_frac: Margin of the ROI on each side, as a fraction of the box's side, at least
            0. Source: VS-ReID. [default: 0.15]
        roi_margin_px_min: Smallest margin in pixels, at least 0, so that a tiny object has
            surroundings. [default: 16]
        use_propagation: False omits the propagation network: masks are only warped, the ablation
            that a network must improve on. [default: True]
        flip_tta: Also run the network on each crop flipped horizontally and average both, at twice
            its cost. Not in the paper. [default: False]
        propagation_weight: Inside the ROI the result is weight * network + (1 - weight) * warped,
            0..1. 1 is the paper. [default: 1]
        lost_area_frac: An object is lost if no warped pixel is above the threshold, or fewer than
            this fraction of its first area, 0..1. VS-ReID uses 0.1; at 0 an object that moves away
            stays tracked. [default: 0]
        one_shot: Model that separates an object by its first mask alone: ``"target"``: the target
            model, solved in a second; ``"osvos"``: OSVOS; ``"both"``; ``"off"``: none.
            ``"auto"``: the target model if the engine directory has a features engine, otherwise
            OSVOS. [default: "auto"]
        target: When the target model runs and how it is updated.
        osvos: When OSVOS runs and how it is blended.
        redetect: Which components are accepted as a lost object.
        crf: ``CrfOptions()`` runs a dense CRF as the last stage of a frame; None does not.
            [default: None]
        finetune: ``FinetuneOptions()`` fine-tunes the networks on each object that is given; None
            does not. [default: None]

    Raises:
        InputError: If a value has another type or is out of range.
        TypeError: If an option has its name of version 0.1; the message gives the new one.
    """

    size: int | Unset = UNSET
    threshold: float | Unset = UNSET
    flow_check_px: float | Unset = UNSET
    colour_weight: float | Unset = UNSET
    roi_margin_frac: float | Unset = UNSET
    roi_margin_px_min: int | Unset = UNSET
    use_propagation: bool | Unset = UNSET
    flip_tta: bool | Unset = UNSET
    propagation_weight: float | Unset = UNSET
    lost_area_frac: float | Unset = UNSET
    one_shot: OneShot | Unset = UNSET
    target: TargetOptions = TargetOptions()
    osvos: OsvosOptions = OsvosOptions()
    redetect: RedetectOptions = RedetectOptions()
    crf: CrfOptions | Unset | None = UNSET
    finetune: FinetuneOptions | None = None

    def __post_init__(self) -> None:
        _refuse_values_of_0_1(self.osvos, self.crf)
        _check_group("target", self.target, TargetOptions, "TargetOptions(...)")
        _check_group("osvos", self.osvos, OsvosOptions, "OsvosOptions(mode=...)")
        _check_group("redetect", self.redetect, RedetectOptions, "RedetectOptions(...)")
        if self.crf is not None and self.crf is not UNSET:
            _check_group("crf", self.crf, CrfOptions, "CrfOptions() or None")
        if self.finetune is not None:
            _check_group("finetune", self.finetune, FinetuneOptions, "FinetuneOptions() or None")
        if self.size is not UNSET and (
            not is_int(self.size) or (self.size != NATIVE_SIZE and self.size < MIN_SIDE_PX)
        ):
            raise InputError(
                f"option size must be a short side of at least {MIN_SIDE_PX} pixels, or "
                f"{NATIVE_SIZE} for the size of the video, got {self.size!r}"
            )
        if self.one_shot is not UNSET:
            check_choice("option one_shot", self.one_shot, get_args(OneShot))
        if self.roi_margin_px_min is not UNSET:
            check_int(
                "option roi_margin_px_min",
                self.roi_margin_px_min,
                least=0,
                kind="a number of pixels",
            )
        for name in ("use_propagation", "flip_tta"):
            value = getattr(self, name)
            if value is not UNSET:
                check_bool(f"option {name}", value)
        _check_shares(self, "", ("threshold", "propagation_weight", "lost_area_frac"))
        for name, kind in (
            ("roi_margin_frac", "a fraction"),
            ("flow_check_px", "a number of pixels"),
            ("colour_weight", "a weight"),
        ):
            value = getattr(self, name)
            if value is not UNSET:
                check_number(f"option {name}", value, least=0, kind=kind)

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with some values replaced by name.

        Args:
            values: Name -> value. ``"osvos.every"`` names a field of a group; ``"crf"`` is true or
                false and comes before the fields of its group.

        Raises:
            InputError: If a name is unknown, a value does not fit, or a field of the CRF is given
                while the CRF is off.
        """
        unknown = sorted(set(values) - set(option_names()))
        if unknown:
            raise InputError(
                f"there is no option {unknown[0]}: the options are {', '.join(option_names())}"
            )
        changed: dict[str, Any] = {k: v for k, v in values.items() if "." not in k and k != "crf"}
        if "crf" in values:
            check_bool("option crf", values["crf"])
            if not values["crf"]:
                changed["crf"] = None
            elif self.crf is None or self.crf is UNSET:
                changed["crf"] = _EMPTY_CRF[isinstance(self, ResolvedOptions)]
        for group in (*_GROUPS, "crf"):
            of_group = {
                name.partition(".")[2]: value
                for name, value in values.items()
                if name.startswith(f"{group}.")
            }
            if not of_group:
                continue
            before = changed.get(group, getattr(self, group))
            if before is None or before is UNSET:
                raise InputError(f"option {group}.{min(of_group)} needs {group}=true")
            changed[group] = replace(before, **of_group)
        return replace(self, **changed)

    def with_defaults(self, advice: Mapping[str, Any]) -> ResolvedOptions:
        """Resolve the options: given, else advised, else the documented default.

        Args:
            advice: Option names to values, as in the ``runtime_defaults`` of a manifest; names of
                version 0.1 are translated.

        Raises:
            ManifestError: If a name is unknown or a value does not fit its option. Advice for
                options that are given is checked too.
        """
        values = _advice_of_today(advice)
        is_crf_advised = values.pop("crf", False)
        advised = PipelineOptions(crf=CrfOptions()).with_values(values)
        crf = self.crf
        if crf is UNSET:
            crf = CrfOptions() if is_crf_advised else None
        assert isinstance(advised.crf, CrfOptions)
        return _resolved(
            ResolvedOptions,
            self,
            advised,
            target=_resolved(ResolvedTarget, self.target, advised.target),
            osvos=_resolved(ResolvedOsvos, self.osvos, advised.osvos),
            redetect=_resolved(ResolvedRedetect, self.redetect, advised.redetect),
            crf=None if crf is None else _resolved(ResolvedCrf, crf, advised.crf),
            finetune=self.finetune,
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions(PipelineOptions):
    """A value for each of :class:`PipelineOptions`, by default the documented one."""

    size: int = 480
    threshold: float = 0.5
    flow_check_px: float = 0.0
    colour_weight: float = 0.0
    roi_margin_frac: float = 0.15
    roi_margin_px_min: int = 16
    use_propagation: bool = True
    flip_tta: bool = False
    propagation_weight: float = 1.0
    lost_area_frac: float = 0.0
    one_shot: OneShot = "auto"
    target: ResolvedTarget = ResolvedTarget()
    osvos: ResolvedOsvos = ResolvedOsvos()
    redetect: ResolvedRedetect = ResolvedRedetect()
    crf: ResolvedCrf | None = None

    def as_json(self) -> dict[str, Any]:
        """Return all values but ``finetune`` as JSON types, a dict per group."""
        values = asdict(replace(self, finetune=None))
        del values["finetune"]
        return values


_GROUPS: Mapping[str, type] = {
    "target": TargetOptions,
    "osvos": OsvosOptions,
    "redetect": RedetectOptions,
}
"""Groups that always have a value, in their order."""

_EMPTY_CRF = {False: CrfOptions(), True: ResolvedCrf()}


def option_names() -> tuple[str, ...]:
    """Return the names that :meth:`PipelineOptions.with_values` takes."""
    groups = {**_GROUPS, "crf": CrfOptions}
    names = [
        option.name
        for option in fields(PipelineOptions)
        if option.name not in (*_GROUPS, "finetune")
    ]
    for group, cls in groups.items():
        names += [f"{group}.{option.name}" for option in fields(cls)]
    return tuple(names)


def _advice_of_today(advice: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the names of version 0.1 in the ``runtime_defaults`` of a manifest."""
    today: dict[str, Any] = {}
    for name, value in advice.items():
        if name in CONSTANTS_OF_0_1:
            if value != CONSTANTS_OF_0_1[name]:
                raise ManifestError(
                    f"{_advice(name)} is a constant now, {CONSTANTS_OF_0_1[name]}: "
                    "remove it from the manifest"
                )
            continue
        new = "osvos.mode" if name == "osvos" else OPTIONS_OF_0_1.get(name, name)
        if new not in option_names():
            raise ManifestError(
                f"{_advice(name)} is no option of this version: the options are "
                f"{', '.join(option_names())}"
            )
        if new in today:
            raise ManifestError(f"{_advice(name)} gives {new} a second time")
        is_old_mode = name == "osvos" and isinstance(value, str)
        today[new] = _MODES_OF_0_1.get(value, value) if is_old_mode else value
        try:
            PipelineOptions(crf=CrfOptions()).with_values({new: today[new]})
        except InputError as error:
            problem = str(error).removeprefix(f"option {new} ")
            raise ManifestError(f"{_advice(name)} {problem}") from error
    return today


def _advice(name: str) -> str:
    return f"manifest.json: field 'runtime_defaults.{name}'"


def _resolved(cls: type[T], given: Any, advised: Any, **groups: Any) -> T:
    """Return ``cls`` with values of ``given``, else ``advised``, else its defaults."""
    values = dict(groups)
    for option in fields(advised):
        for source in (given, advised):
            value = getattr(source, option.name)
            if option.name not in values and value is not UNSET:
                values[option.name] = value
    return cls(**values)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Set how a frame runs on a device. No option changes a mask.

    Attributes:
        use_streams: Run the flow of the next frame and OSVOS on separate streams. [default: True]
        use_graphs: Replay work that is the same in each frame as CUDA graphs, from the second frame
            on, if the engines support capture. Stages inside a graph are not timed.
            [default: True]

    Raises:
        InputError: If a value is not a bool.
    """

    use_streams: bool = True
    use_graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("use_streams", "use_graphs"):
            check_bool(f"device option {name}", getattr(self, name))


HOST_ONLY: Mapping[str, Any] = {"crf.working_scale": 1.0}
"""Options without CUDA kernels, and the one value of each that a device supports."""


def check_options(options: ResolvedOptions) -> None:
    """Raise InputError if an option has a value that a device does not support."""
    for name, supported in HOST_ONLY.items():
        group, _, field = name.partition(".")
        of_group = getattr(options, group)
        if of_group is None:
            continue
        value = getattr(of_group, field)
        if value != supported:
            raise InputError(
                f"option {name} is {value!r}, not supported on a device: set it to {supported!r}, "
                "or use backend 'cpu'"
            )

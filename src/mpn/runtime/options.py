"""The options of the pipeline: what the paper leaves open, each as one documented field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from mpn._common.validation import check_bool, check_choice, check_int, check_number, is_int
from mpn.errors import InputError, ManifestError
from mpn.runtime.crf.refine import CrfOptions
from mpn.runtime.host.preprocess import NATIVE_SIZE

OsvosMode = Literal["auto", "blend", "retrieve-only", "off"]


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How the stages of a frame work.

    Options that are not given take what the engine directory advises (``runtime_defaults`` of its
    manifest, since some weights want another margin or blend) and otherwise the defaults here. An
    option that is given always wins, even if it is given its default value.

    Attributes:
        size: Short side that frames are worked on at; larger frames are averaged down to it,
            smaller ones are left alone, -1 works at the input's size. 480 is DAVIS.
        threshold: Warped probability above which a pixel counts for the ROI and for being found.
            Source: VS-ReID, whose argmax of two classes is the same.
        flow_check_px: Where the flow to the previous frame and the flow back do not meet, the
            warped probability is lowered, by exp(-d^2 / (2 s^2)): d is by how many pixels they miss
            each other, s this many pixels plus half of the flow's length. 0, the paper, warps
            unchecked and estimates one flow a frame instead of two.
        colour_weight: Weight of the colours of the frame whose labels were given, as evidence for
            or against the warped probability; see :mod:`mpn.runtime.host.reliability`. 0, the paper, has no
            such stage.
        roi_margin_frac: Margin of the ROI a side, as a share of the box's side. Source: VS-ReID.
        roi_margin_px_min: Smallest margin in pixels: a tiny object needs its surroundings too.
        use_propagation: False leaves the network out: masks are warped and nothing else (the
            ablation that a network must beat).
        mirror: Whether the network sees every crop mirrored, too, and the answers are averaged:
            steadier masks for twice its cost. The paper says nothing of it.
        propagation_weight: Inside the ROI, weight * network + (1 - weight) * warped. 1 is the
            paper; less holds back a network that drifts.
        lost_area_frac: An object is lost when no warped pixel is above the threshold, or fewer than
            this share of its first area. VS-ReID gives up at 0.1. The default 0 does not: an
            object that drives away shrinks below a tenth and is still there to be tracked.
        osvos: What OSVOS is for, if the engine directory has it. ``"blend"``: averaged with the
            propagation inside each object's ROI, and lost objects are looked for.
            ``"retrieve-only"``: lost objects are looked for. ``"off"``: it never runs. ``"auto"``:
            blend where every object has an OSVOS fine-tuned on it; retrieve-only otherwise,
            because the common network answers "something", not "which".
        osvos_threshold: Probability of OSVOS that means even odds; its answers are shifted so that
            this becomes 0.5, odds * (1 - threshold) / threshold. Its class-balanced loss makes it
            answer as if half of the frame were object; the public TensorFlow demo cuts its masks
            at 162/255. 0.5 takes the answers as they are.
        osvos_every: OSVOS runs on every N-th frame; on the others only for objects that are lost
            or doubtful. 1, the paper, runs it on all.
        doubt_confidence: An object is doubtful when the mean probability of its own pixels was
            under this in the frame before; see :mod:`mpn.runtime.tracks`. 0: never for this reason.
        doubt_area_factor: An object is doubtful when its area was over this many times the mean of
            its last frames, or under that mean divided by it; at least 1.
        ensemble_weight: Weight of OSVOS in the blend. The paper says "ensemble"; 0.5 is its plain
            average. Outside the ROI the propagation is 0 and, up to 0.5, no blend could make an
            object of it, so the blend ends there.
        retrieve_area_frac: Smallest component that is taken for a lost object, as a share of the
            object's first area. Source: VS-ReID.
        retrieve_iou_max: Largest overlap of that component with another object. Source: VS-ReID.
        retrieve_colour: Smallest mean log-likelihood ratio of that component's colours, object
            against its surroundings in the frame where it was given (:mod:`mpn.runtime.host.reliability`);
            -2 takes any. VS-ReID compares looks by a network.
        retrieve_agreement: A tracked object is looked for too where the OSVOS that was fine-tuned
            on it gives the pixels it is expected at less than this mean probability, or their
            colours would not pass ``retrieve_colour``: propagation may follow something else then,
            for instance what the object went behind. It is moved only to another place that passes
            all tests; while there is none it is doubtful. 0: what propagation follows is believed.
        crf: Whether a dense CRF is the last stage of a frame, see :mod:`mpn.runtime.crf.refine`.
        crf_feedback: Whether the next frame starts from the probability after CRF. By default it
            starts from the one before: the paper propagates the mask probability and calls CRF the
            final stage.
        crf_sxy_gaussian: See :class:`mpn.runtime.crf.refine.CrfOptions`, as for those that follow.
        crf_compat_gaussian: See there.
        crf_sxy_bilateral: See there.
        crf_srgb_bilateral: See there.
        crf_compat_bilateral: See there.
        crf_iterations: See there.
        crf_margin_px: See there.
        crf_whole_frame: See there.
        crf_working_scale: See there.

    Raises:
        InputError: If a value is of another type or out of range.
    """

    size: int = 480
    threshold: float = 0.5
    flow_check_px: float = 0.0
    colour_weight: float = 0.0
    roi_margin_frac: float = 0.15
    roi_margin_px_min: int = 16
    use_propagation: bool = True
    mirror: bool = False
    propagation_weight: float = 1.0
    lost_area_frac: float = 0.0
    osvos: OsvosMode = "auto"
    osvos_threshold: float = 0.5
    osvos_every: int = 1
    doubt_confidence: float = 0.7
    doubt_area_factor: float = 2.0
    ensemble_weight: float = 0.5
    retrieve_area_frac: float = 0.1
    retrieve_iou_max: float = 0.3
    retrieve_colour: float = 0.4
    retrieve_agreement: float = 0.2
    crf: bool = False
    crf_feedback: bool = False
    crf_sxy_gaussian: float = CrfOptions.sxy_gaussian
    crf_compat_gaussian: float = CrfOptions.compat_gaussian
    crf_sxy_bilateral: float = CrfOptions.sxy_bilateral
    crf_srgb_bilateral: float = CrfOptions.srgb_bilateral
    crf_compat_bilateral: float = CrfOptions.compat_bilateral
    crf_iterations: int = CrfOptions.iterations
    crf_margin_px: int = CrfOptions.margin_px
    crf_whole_frame: bool = CrfOptions.whole_frame
    crf_working_scale: float = CrfOptions.working_scale

    def __new__(cls, **given: Any) -> Self:
        """Note which options are given: __init__ only sees them filled up with defaults."""
        self = super().__new__(cls)
        object.__setattr__(self, "_given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        if self.size != NATIVE_SIZE or not is_int(self.size):
            kind = f"{NATIVE_SIZE} (native) or a short side in pixels"
            check_int("option size", self.size, least=1, kind=kind)
        check_int(
            "option roi_margin_px_min", self.roi_margin_px_min, least=0, kind="a number of pixels"
        )
        check_int("option osvos_every", self.osvos_every, least=1, kind="a number of frames")
        check_number("option doubt_area_factor", self.doubt_area_factor, least=1)
        for name in ("use_propagation", "mirror", "crf", "crf_feedback"):
            check_bool(f"option {name}", getattr(self, name))
        self.crf_options
        check_choice("option osvos", self.osvos, get_args(OsvosMode))
        check_number("option osvos_threshold", self.osvos_threshold, above=0, below=1)
        check_number("option retrieve_colour", self.retrieve_colour, least=-2, most=2)
        for name in _SHARES:
            check_number(f"option {name}", getattr(self, name), least=0, most=1)
        for name, kind in (
            ("roi_margin_frac", "a share"),
            ("flow_check_px", "pixels"),
            ("colour_weight", "a weight"),
        ):
            check_number(f"option {name}", getattr(self, name), least=0, kind=kind)

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that were given rather than left to their defaults."""
        given: frozenset[str] = self.__dict__["_given"]
        return given

    @property
    def crf_options(self) -> CrfOptions:
        """The options of the CRF stage."""
        return CrfOptions(
            **{option.name: getattr(self, f"crf_{option.name}") for option in fields(CrfOptions)}
        )

    def with_defaults(self, defaults: Mapping[str, Any]) -> PipelineOptions:
        """These options, with other defaults for those that were not given.

        Args:
            defaults: Option names to values, as in the ``runtime_defaults`` of a manifest.

        Raises:
            ManifestError: If a name is unknown or a value does not fit its option.
        """
        known = {option.name for option in fields(self)}
        unknown = sorted(set(defaults) - known)
        if unknown:
            raise ManifestError(
                f"field 'runtime_defaults.{unknown[0]}' is no option of this version: the options "
                f"are {', '.join(sorted(known))}"
            )
        try:
            PipelineOptions(**defaults)  # also those that are overridden must be valid
            given = {name: getattr(self, name) for name in self.given}
            options = PipelineOptions(**{**defaults, **given})
        except InputError as error:
            raise ManifestError(f"field 'runtime_defaults': {error}") from error
        object.__setattr__(options, "_given", self.given)
        return options


_SHARES = (
    "threshold",
    "propagation_weight",
    "lost_area_frac",
    "doubt_confidence",
    "ensemble_weight",
    "retrieve_area_frac",
    "retrieve_iou_max",
    "retrieve_agreement",
)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of a device; they change no mask.

    Attributes:
        use_streams: Run the flow of the next frame and OSVOS on separate streams; False runs all
            on one.
        use_graphs: Launch the stages as CUDA graphs from their second run on, if the engines can
            be captured. A graph is timed as a whole.
    """

    use_streams: bool = True
    use_graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("use_streams", "use_graphs"):
            check_bool(f"device option {name}", getattr(self, name))


HOST_ONLY: Mapping[str, Any] = {"crf_working_scale": 1.0}
"""Options without kernels, and the one value of each that a device accepts."""


def check_options(options: PipelineOptions) -> None:
    """Raise InputError if an option has no kernels."""
    for name, possible in HOST_ONLY.items():
        value = getattr(options, name)
        if value != possible:
            raise InputError(
                f"option {name} is {value!r}, which only backend 'cpu' can do: give it as "
                f"{possible!r}, or use backend 'cpu'"
            )

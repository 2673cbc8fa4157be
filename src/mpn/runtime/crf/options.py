"""Define the options of the dense CRF."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mpn._common.options import UNSET, GivenRepr, Unset
from mpn._common.validation import check_bool, check_int, check_number


@dataclass(frozen=True, kw_only=True, repr=False)
class CrfOptions(GivenRepr):
    """Set the dense CRF, the last stage of a frame.

    The defaults are those of a public script for DAVIS at 480p (COSNet's author). docs/crf.md
    compares them with others on training sequences. Options that are not given are UNSET.

    Attributes:
        feedback: Start the next frame from the probability after the CRF. The paper propagates the
            mask probability and calls the CRF the final stage. [default: False]
        sxy_gaussian: Standard deviation of the spatial kernel, in pixels of the working size,
            above 0. [default: 1]
        compat_gaussian: Weight of the spatial kernel, at least 0; 0 omits it. [default: 5]
        sxy_bilateral: Spatial standard deviation of the bilateral kernel, in pixels of the working
            size, above 0. [default: 15]
        srgb_bilateral: Colour standard deviation of the bilateral kernel, in levels of 0..255,
            above 0. [default: 7]
        compat_bilateral: Weight of the bilateral kernel, at least 0; 0 omits it. [default: 9]
        iterations: Mean-field updates, at least 1. [default: 5]
        margin_px: Pixels added on each side to the box of an object, so that the background around
            it takes part; at least 0. [default: 16]
        whole_frame: Work on the whole frame, at several times the cost. [default: False]
        working_scale: Scale of the image that the CRF works on, above 0 and at most 1. Below 1 the
            change of the log odds is computed at this scale and added at full size; 0.5 costs a
            quarter. The other options stay in pixels of the working size. Only on the CPU.
            [default: 1]

    Raises:
        InputError: If a value has another type or is out of range.
    """

    feedback: bool | Unset = UNSET
    sxy_gaussian: float | Unset = UNSET
    compat_gaussian: float | Unset = UNSET
    sxy_bilateral: float | Unset = UNSET
    srgb_bilateral: float | Unset = UNSET
    compat_bilateral: float | Unset = UNSET
    iterations: int | Unset = UNSET
    margin_px: int | Unset = UNSET
    whole_frame: bool | Unset = UNSET
    working_scale: float | Unset = UNSET

    def __post_init__(self) -> None:
        for option in fields(self):
            name, value = f"option crf.{option.name}", getattr(self, option.name)
            if value is UNSET:
                continue
            if option.name in ("feedback", "whole_frame"):
                check_bool(name, value)
            elif option.name in ("iterations", "margin_px"):
                check_int(name, value, least=int(option.name == "iterations"))
            elif option.name in ("compat_gaussian", "compat_bilateral"):
                check_number(name, value, least=0)
            else:
                most = 1 if option.name == "working_scale" else None
                check_number(name, value, above=0, most=most)


@dataclass(frozen=True, kw_only=True)
class ResolvedCrf(CrfOptions):
    """A value for each of :class:`CrfOptions`, by default the documented one."""

    feedback: bool = False
    sxy_gaussian: float = 1.0
    compat_gaussian: float = 5.0
    sxy_bilateral: float = 15.0
    srgb_bilateral: float = 7.0
    compat_bilateral: float = 9.0
    iterations: int = 5
    margin_px: int = 16
    whole_frame: bool = False
    working_scale: float = 1.0

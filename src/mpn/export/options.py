"""Options of an export, checked before any work."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mpn._common.options import refuse_old_fields
from mpn._common.records import Scalar
from mpn._common.validation import repeated
from mpn.engines.directory.entries import DIS_PRESETS, FINETUNE_OPTIMIZERS, DisPreset
from mpn.engines.spec import OPSET, ROLES, Precision, Role, features_spec, propagation_spec
from mpn.errors import EngineError, InputError

MIN_FRAME_SIDE = 64
"""FlowNet 2.0 halves six times and OSVOS four: below 64 pixels their deepest level is empty."""

MAX_FRAME_SIDE = 8192
MAX_OBJECTS = 254
"""Number of ids in a palette PNG: 0 is background, 255 is void."""

_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*")
_MAX_NAME = 80
FLOAT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
"""int8 is made from an engine directory, see :mod:`mpn.quantization`."""


@refuse_old_fields(
    {
        "adapt": "finetune",
        "adapt_optimizer": "finetune_optimizer",
        "opset": f"a constant, {OPSET}",
    }
)
@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        precision: Precision of the layers; inputs and outputs are always float32.
        frame_size_hw: (height, width) of the working frame, for flow and OSVOS.
        features_size_hw: (height, width) of the features engine's input, each 32 n + 1.
        roi_size: Side of the propagation crop, 16 n + 1.
        max_objects: Largest object batch that plans are built for; onnxruntime takes any.
        roles: Which roles of the checkpoints to export; None for all.
        verify: Compare each graph with its module, and refuse to write what differs.
        parity_images: Folder of pictures to compare on; None renders some.
        finetune: Write the fine-tuning step of the roles that have one, with their weights in
            separate files. True raises if a step cannot be derived or does not pass its check.
            None then leaves that step out with a warning; True is implied by
            ``finetune_optimizer``.
        finetune_optimizer: ``"sgd"`` or ``"adamw"`` for all roles; None for the default of each.
        flow_variant: Member of the FlowNet 2.0 family that the flow checkpoint must be, for example
            ``"FlowNet2"``; None recognises it by its keys.
        init_fourth_channel: How to fill the fourth channel of DeepLab weights that have three.
        flow_preset: Preset of OpenCV's DIS if no flow network is exported.
        flow_scale: Size at which DIS runs, relative to the working frame.
        runtime_defaults: Pipeline options that suit these weights.
        name: Display name; empty for the name of the directory.
        licence: Licence of the weights; empty for that of the checkpoints.
        command: Command line for the provenance, without paths of the machine.

    Raises:
        InputError: If a value cannot be used.
    """

    precision: Precision = "fp32"
    frame_size_hw: tuple[int, int] = (480, 854)
    features_size_hw: tuple[int, int] = (385, 673)
    roi_size: int = 513
    max_objects: int = 8
    roles: tuple[Role, ...] | None = None
    verify: bool = True
    parity_images: Path | None = None
    finetune: bool | None = None
    finetune_optimizer: str | None = None
    flow_variant: str | None = None
    init_fourth_channel: str | None = None
    flow_preset: DisPreset = "ultrafast"
    flow_scale: float = 1.0
    runtime_defaults: Mapping[str, Scalar] = field(default_factory=dict)
    name: str = ""
    licence: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if self.precision not in FLOAT_PRECISIONS:
            raise InputError(
                f"unknown precision '{self.precision}': the precisions are "
                f"{', '.join(FLOAT_PRECISIONS)}, and int8 for an engine directory"
            )
        _check_frame_size(self.frame_size_hw)
        try:
            propagation_spec(self.roi_size, self.max_objects)
            features_spec(self.features_size_hw, channels=1)
        except EngineError as error:
            raise InputError(str(error)) from error
        if self.max_objects > MAX_OBJECTS:
            raise InputError(f"max_objects must be at most {MAX_OBJECTS}, got {self.max_objects}")
        if self.roles is not None and not self.roles:
            raise InputError(f"no role is given: the roles are {', '.join(ROLES)}")
        if self.parity_images is not None and not self.verify:
            raise InputError(
                "parity images are given, but verification is off: "
                "leave out either --parity-images or --no-verify"
            )
        if self.finetune_optimizer not in (None, *FINETUNE_OPTIMIZERS):
            raise InputError(
                f"unknown optimiser '{self.finetune_optimizer}': the optimisers are "
                f"{', '.join(FINETUNE_OPTIMIZERS)}"
            )
        if self.finetune_optimizer is not None and self.finetune is False:
            raise InputError(
                "an optimiser was given, but fine-tuning was switched off: leave out either "
                "--finetune-optimizer or --no-finetune"
            )
        if self.flow_preset not in DIS_PRESETS:
            raise InputError(
                f"unknown flow preset '{self.flow_preset}': the presets are "
                f"{', '.join(DIS_PRESETS)}"
            )
        if not 0.0 < self.flow_scale <= 1.0:
            raise InputError(f"the flow scale must be over 0 and at most 1, got {self.flow_scale}")
        if len(self.name) > _MAX_NAME or not self.name.isprintable():
            raise InputError(f"the name must be printable and at most {_MAX_NAME} characters long")

    @property
    def must_finetune(self) -> bool:
        """Whether a fine-tuning step that cannot be written is an error."""
        return self.finetune is True or self.finetune_optimizer is not None


def options_from_values(*, frame_size: str, features_size: str, **values: Any) -> ExportOptions:
    """Build options from values of a command line.

    Args:
        frame_size: ``WIDTHxHEIGHT``.
        features_size: ``WIDTHxHEIGHT``.
        **values: The other fields of :class:`ExportOptions`, which checks them.

    Raises:
        InputError: If one cannot be used.
    """
    return ExportOptions(
        frame_size_hw=frame_size_hw_from_text(frame_size),
        features_size_hw=frame_size_hw_from_text(features_size),
        **values,
    )


def frame_size_hw_from_text(text: str) -> tuple[int, int]:
    """Parse (height, width) from ``WIDTHxHEIGHT``, for example ``"854x480"``.

    Raises:
        InputError: If the text is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"the frame size must be WIDTHxHEIGHT such as 854x480, got '{text}'")
    return (int(match[2]), int(match[1]))


def roles_from_text(text: str) -> tuple[Role, ...]:
    """Parse roles from a list with commas, for example ``"flow,propagation"``.

    Raises:
        InputError: If one is unknown or given twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ROLES:
            raise InputError(f"unknown role '{name}': the roles are {', '.join(ROLES)}")
    if twice := repeated(names):
        raise InputError(f"the role '{twice[0]}' is given twice: give each role once")
    return tuple(cast(Role, name) for name in names)


def runtime_defaults_from_texts(texts: list[str]) -> dict[str, Scalar]:
    """Parse options from ``NAME=VALUE`` texts.

    A value is true, false, null, a number, or else text.

    Raises:
        InputError: If one has no name or no ``=``, or a name comes twice.
    """
    defaults: dict[str, Scalar] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not all(part.isidentifier() for part in name.split(".")):
            raise InputError(
                f"a runtime default must be NAME=VALUE such as osvos.every=2, got '{text}'"
            )
        if name in defaults:
            raise InputError(f"the runtime default '{name}' is given twice: give it once")
        defaults[name] = _scalar_from_text(value)
    return defaults


def _scalar_from_text(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"a runtime default must be finite, got '{text}'")
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _check_frame_size(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    if min(size_hw) < MIN_FRAME_SIDE:
        raise InputError(
            f"the frame size {width}x{height} is too small: both sides must be at least "
            f"{MIN_FRAME_SIDE}, since FlowNet 2.0 halves them six times and OSVOS four"
        )
    if max(size_hw) > MAX_FRAME_SIDE:
        raise InputError(
            f"the frame size {width}x{height} is too large: both sides must be at most "
            f"{MAX_FRAME_SIDE}"
        )

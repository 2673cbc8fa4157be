"""Errors that this package raises, and the import of optional packages.

Each message is one line with the received value, the expected value and a remedy. The command line
prints it and exits with 1; any other exception is a bug.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MpnError(Exception):
    """Base of all errors for users."""


class MpnWarning(UserWarning):
    """A value was replaced by one that can be used."""


class InputError(MpnError):
    """An input of the user cannot be used: video, mask, folder, option value."""


class VideoError(InputError):
    """A video cannot be opened, decoded or written."""


class MaskError(InputError):
    """A first-frame mask cannot be used."""


class OutputError(MpnError):
    """A result cannot be written (no permission, disk full, folder in use)."""


class FolderInUseError(OutputError):
    """Another run writes to the output folder."""


class OutOfMemoryError(MpnError):
    """The memory of this machine, or its limit in force, is too small."""


class CheckpointError(MpnError):
    """A checkpoint is damaged, of unknown kind, or does not fit the network."""


class ExportError(MpnError):
    """A graph cannot be exported, or differs from its PyTorch module."""


class EngineError(MpnError):
    """An engine directory or an engine in it cannot be used."""


class ManifestError(EngineError):
    """An engine directory has a missing, damaged or unknown manifest."""


class BackendError(EngineError):
    """The requested backend would not be the one that runs."""


class TrainingError(MpnError):
    """Training data or options cannot be used."""


class EvaluationError(MpnError):
    """Ground truth or results cannot be evaluated."""


class MissingExtraError(MpnError):
    """A feature needs an optional dependency that is not installed."""


def import_or_explain(module: str, *, extra: str, purpose: str) -> Any:
    """Import ``module``, or raise with the extra that installs it.

    Args:
        module: Importable name, for example ``"onnxruntime"``.
        extra: Extra of this package that installs it, for example ``"cpu"``.
        purpose: The feature that needs it, as the start of the error message.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module, or one that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs the Python package '{error.name}', which is not installed: "
            f"install mpn-runtime with its extra [{extra}], e.g. pip install '.[{extra}]'"
        ) from error

"""Every error this package raises on purpose, and the helper that asks for a missing extra.

Each message is one line that says what was received, what was expected and what to do. The command
line prints it and exits with 1; any other exception is a bug.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MpnError(Exception):
    """Base of all errors a user can meet."""


class InputError(MpnError):
    """An input of the user cannot be used: video, mask, folder, option value."""


class VideoError(InputError):
    """A video cannot be opened, decoded or written."""


class MaskError(InputError):
    """A first-frame mask cannot be used."""


class OutputError(MpnError):
    """A result cannot be written (no permission, disk full, folder in use)."""


class CheckpointError(MpnError):
    """A checkpoint is damaged, of an unknown kind, or does not fit the network asked for."""


class ExportError(MpnError):
    """A graph cannot be exported, or differs from its PyTorch module."""


class EngineError(MpnError):
    """An engine directory or an engine in it cannot be used."""


class ManifestError(EngineError):
    """The manifest of an engine directory is missing, damaged or of an unknown schema."""


class BackendError(EngineError):
    """The backend asked for is not what would run."""


class TrainingError(MpnError):
    """Training data or options cannot be used."""


class EvaluationError(MpnError):
    """Ground truth or results cannot be evaluated."""


class MissingExtraError(MpnError):
    """A feature needs an optional dependency that is not installed."""


def import_or_explain(module: str, *, extra: str, purpose: str) -> Any:
    """Import ``module``, or say in one line which extra brings it.

    Args:
        module: Importable name, for example ``"onnxruntime"``.
        extra: Extra of this package that installs it, for example ``"cpu"``.
        purpose: What needs it, as the start of the sentence shown to the user.

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

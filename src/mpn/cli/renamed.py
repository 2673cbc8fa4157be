"""Refuse command line options of version 0.1 in one line that gives the new name."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, Mapping[str, str]] = {
    "run": {
        "--no-adapt": "is now --no-finetune",
        "--adapt-steps": "is now --finetune-steps",
        "--adapt-seconds": "is now --finetune-seconds",
        "--adapt-size": "is now --finetune-size",
        "--adapt-scope": "is now --finetune-scope",
        "--adapt-cache": "is now --finetune-cache",
        "--no-adapt-cache": "is now --no-finetune-cache",
    },
    "export": {
        "--adapt": "is now --finetune",
        "--no-adapt": "is now --no-finetune",
        "--adapt-optimizer": "is now --finetune-optimizer",
        "--opset": "is gone: graphs are always written with ONNX opset 18",
    },
    "bench": {"--adapt-steps": "is now --finetune-steps"},
}
"""Command -> its option of version 0.1 -> what became of it."""


def refusal_of(command: str | None, option: str | None) -> str | None:
    """Return the message for an unknown option that a command had in version 0.1.

    Args:
        command: Name of the command, such as ``"run"``.
        option: The unknown option.

    Returns:
        None if the command did not have the option.
    """
    change = RENAMED.get(command or "", {}).get(option or "")
    return None if change is None else f"{option} {change}"

"""Refuse command line options of version 0.1 in one line that gives the new name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

RENAMED: Mapping[str, str] = {
    "--adapt": "is now --finetune",
    "--no-adapt": "is now --no-finetune",
    "--adapt-steps": "is now --finetune-steps",
    "--adapt-seconds": "is now --finetune-seconds",
    "--adapt-size": "is now --finetune-size",
    "--adapt-scope": "is now --finetune-scope",
    "--adapt-cache": "is now --finetune-cache",
    "--no-adapt-cache": "is now --no-finetune-cache",
    "--adapt-optimizer": "is now --finetune-optimizer",
    "--opset": "is gone: graphs are always written with ONNX opset 18",
}
"""Option of version 0.1 -> what became of it. No option of today has one of these names."""


def refusal_of(arguments: Iterable[str]) -> str | None:
    """Return the message for the first renamed option, or None if there is none."""
    for argument in arguments:
        if argument == "--":
            return None
        name = argument.partition("=")[0]
        if name in RENAMED:
            return f"{name} {RENAMED[name]}"
    return None

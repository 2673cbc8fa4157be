from __future__ import annotations

from collections.abc import Callable

import pytest
import typer

from mpn.cli.export import export
from mpn.cli.main import _run_app, _single_command
from mpn.cli.renamed import RENAMED, refusal_of
from mpn.cli.run import run

RUN = ("--no-adapt", "--adapt-steps", "--adapt-seconds", "--adapt-size", "--adapt-scope",
       "--adapt-cache", "--no-adapt-cache")  # fmt: skip
EXPORT = ("--adapt", "--no-adapt", "--adapt-optimizer", "--opset")
OLD: list[tuple[Callable[..., None], str]] = [
    *((run, flag) for flag in RUN),
    *((export, flag) for flag in EXPORT),
]


@pytest.mark.parametrize(("command", "flag"), OLD)
@pytest.mark.parametrize("is_joined", [False, True])
def test_old_flag_is_refused_with_the_new_name(
    command: Callable[..., None], flag: str, is_joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{flag}=3"] if is_joined else [flag, "3"]
    assert _run_app(_single_command(command, "mpn-x"), ["clip.mp4", *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {flag} {RENAMED[flag]}\n")


def test_no_finetune_message_is_the_documented_one() -> None:
    assert refusal_of(["a.mp4", "--no-adapt"]) == "--no-adapt is now --no-finetune"


def test_each_old_flag_is_tested_and_each_new_one_exists() -> None:
    assert {flag for _, flag in OLD} == set(RENAMED)
    known = {
        option
        for command in (run, export)
        for parameter in typer.main.get_command(_single_command(command, "mpn-x")).params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert "--mask" in known
    assert not known & set(RENAMED)
    new = {text.removeprefix("is now ") for text in RENAMED.values() if text.startswith("is now")}
    assert new <= known


def test_arguments_after_two_dashes_are_no_flags() -> None:
    assert refusal_of(["--", "--no-adapt"]) is None
    assert refusal_of(["clip.mp4", "--no-finetune", "-o", "adapt"]) is None

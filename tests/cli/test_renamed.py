from __future__ import annotations

import pytest
import typer

from mpn.cli.main import _run_app, app
from mpn.cli.renamed import RENAMED, refusal_of

OLD = [(command, flag) for command, flags in RENAMED.items() for flag in flags]


def options_of(command: str) -> set[str]:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {flag for p in parameters for flag in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize(("command", "flag"), OLD)
@pytest.mark.parametrize("is_joined", [False, True])
def test_old_flag_is_refused_with_the_new_name(
    command: str, flag: str, is_joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{flag}=3"] if is_joined else [flag, "3"]
    assert _run_app(app, [command, *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {flag} {RENAMED[command][flag]}\n")


@pytest.mark.parametrize(
    "arguments", [["run", "--adapt"], ["run", "--opset"], ["train", "propagation", "--adapt-steps"]]
)
def test_flag_of_another_command_has_no_new_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run_app(app, arguments) == 2
    _, err = capsys.readouterr()
    assert arguments[-1] in err
    assert "is now" not in err
    assert "is gone" not in err


def test_new_names_exist_and_old_ones_do_not() -> None:
    assert refusal_of("run", "--no-adapt") == "--no-adapt is now --no-finetune"
    for command, flags in RENAMED.items():
        known = options_of(command)
        new = {text.removeprefix("is now ") for text in flags.values() if "is now" in text}
        assert new <= known
        assert not known & set(flags)


def test_arguments_after_two_dashes_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(app, ["run", "--", "--no-adapt"]) == 2  # a video without a mask
    assert "no mask was given" in capsys.readouterr().err

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mpn._common.files import sha256_of_file
from mpn.cli.main import _run_app, app
from mpn.engines.directory import locate
from tests.builders.engine_dirs import make_engine_dir, parity_document
from tests.builders.finetune_dirs import make_adapt_dir

Inspect = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """Run ``mpn inspect`` in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = _run_app(app, ["inspect", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_directory_is_described(tmp_path: Path, inspect: Inspect) -> None:
    directory = make_engine_dir(
        tmp_path / "engines [v1]", with_osvos=True, runtime_defaults={"margin": 0.2}
    )
    (directory / "parity.json").write_text(json.dumps(parity_document()))
    code, out, err = inspect(directory)
    assert (code, err) == (0, "")
    for part in (
        "engines [v1]",
        "propagation.onnx",
        "osvos.onnx",
        "fp32",
        "0 of 1",
        "opset 18",
        "rgb_prob float32[objects,4,65,65] -> prob float32[objects,1,65,65]",
        "96x64",
        "opencv-dis",
        "default.margin",
        "CC0-1.0",
        "PyTorch 2.13, float32, CPU",
        "max_relative 1.5e-06 (limit 0.0001), worst of 2",
        "opened propagation, osvos",
    ):
        assert part in out
    assert "differs" not in out


def test_json_is_one_object(tmp_path: Path, inspect: Inspect) -> None:
    code, out, err = inspect(make_engine_dir(tmp_path), "--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert value["manifest"]["name"] == "tiny"
    assert value["problem"] is None


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_changed_file_is_shown_and_exits_with_1(
    tmp_path: Path, inspect: Inspect, flags: tuple[str, ...]
) -> None:
    directory = make_engine_dir(tmp_path)
    content = bytearray((directory / "propagation.onnx").read_bytes())
    content[-1] ^= 1
    (directory / "propagation.onnx").write_bytes(content)
    code, out, err = inspect(directory, *flags)
    assert code == 1
    assert err.startswith("error: propagation.onnx in ")
    assert err.count("\n") == 1
    assert "has changed since export" in err
    assert ("differs" in out) or ("has changed since export" in json.loads(out)["problem"])


def test_missing_onnxruntime_exits_1_with_install_hint(
    tmp_path: Path, inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, out, err = inspect(make_engine_dir(tmp_path))
    assert code == 1
    assert "propagation.onnx" in out
    assert "[cpu]" in err


@pytest.mark.parametrize(
    ("name", "says"),
    [("absent", "there is no engine directory at"), ("clip.mp4", "is a video, not an engine")],
)
def test_no_engine_directory_is_one_line(
    tmp_path: Path, inspect: Inspect, name: str, says: str
) -> None:
    code, out, err = inspect(tmp_path / name)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_default_is_the_shipped_directory(
    tmp_path: Path, inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "_weights_packages", lambda: [tmp_path])
    make_engine_dir(tmp_path / "engines")
    code, out, _ = inspect()
    assert code == 0
    assert "tiny" in out


def test_narrow_terminal_is_no_problem(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "from mpn.cli.main import main; main()", "inspect", str(directory)],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "40", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr


def test_fine_tuning_is_described(tmp_path: Path, inspect: Inspect) -> None:
    code, out, _ = inspect(make_adapt_dir(tmp_path / "engines"))
    assert code == 0
    words = " ".join(out.split())
    for part in (
        "Fine-tuning on the given frame",
        "osvos sgd, momentum 0.9",
        "scope all: 6 tensors, 189 values",
        "scope head: 4 tensors, 77 values",
        "propagation adamw, betas [0.9, 0.999], epsilon 1e-08",
        "osvos_adapt_head.onnx",
        "osvos_features.onnx",
    ):
        assert part in words, part


def test_directory_without_finetuning_is_reported(tmp_path: Path, inspect: Inspect) -> None:
    _, out, _ = inspect(make_engine_dir(tmp_path / "engines"))
    assert "none exported without it" in " ".join(out.split())


def test_a_changed_graph_of_fine_tuning_is_shown(tmp_path: Path, inspect: Inspect) -> None:
    directory = make_adapt_dir(tmp_path / "engines")
    (directory / "osvos_adapt.onnx").write_bytes(b"")
    code, _, err = inspect(directory)
    assert code == 1
    assert "osvos_adapt.onnx" in err
    assert "has changed since export" in " ".join(err.split())


NASTY = "a\x1b]0;title\x07\x1b[2K\x9b31m\u202eb"


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_manifest_with_escapes_does_not_reach_the_terminal(
    tmp_path: Path, inspect: Inspect, flags: tuple[str, ...]
) -> None:
    directory = make_engine_dir(tmp_path / f"d{NASTY}")
    value = json.loads((directory / "manifest.json").read_text())
    value["name"] = value["provenance"]["licence"] = value["provenance"]["command"] = NASTY
    (directory / "manifest.json").write_text(json.dumps(value))
    code, out, err = inspect(directory, *flags)
    assert (code, err) == (0, "")
    assert not set(out) & set("\x1b\x07\x9b\u202e")
    assert r"\u001b]0;title" in out  # control
    if flags:
        assert json.loads(out)["manifest"]["name"] == NASTY


@pytest.mark.parametrize("flags", [(), ("--debug",)])
def test_error_with_escapes_does_not_reach_the_terminal(
    tmp_path: Path, inspect: Inspect, flags: tuple[str, ...]
) -> None:
    directory = make_engine_dir(tmp_path)
    value = json.loads((directory / "manifest.json").read_text())
    value["roles"][f"x{NASTY}"] = value["roles"]["propagation"]
    (directory / "manifest.json").write_text(json.dumps(value))
    for path in (directory, tmp_path / f"absent{NASTY}"):
        code, out, err = inspect(path, *flags)
        assert (code, out) == (1, "")
        assert not set(err) & set("\x1b\x07\x9b\u202e")
        assert r"\u001b" in err or r"\x1b" in err  # control
        assert ("Traceback" in err) == bool(flags)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["manifest.json", "parity.json", "propagation.onnx"])
def test_pipe_in_an_engine_directory_is_one_line(
    tmp_path: Path, inspect: Inspect, name: str
) -> None:
    directory = make_engine_dir(tmp_path)
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    code, out, err = inspect(directory)
    assert code == 1
    assert "plain file" in " ".join((out + err).split())


def test_manifest_of_any_size_is_not_read(tmp_path: Path, inspect: Inspect) -> None:
    directory = make_engine_dir(tmp_path)
    with (directory / "manifest.json").open("r+b") as file:
        file.truncate(1 << 33)  # sparse: it needs no disk
    code, _, err = inspect(directory)
    assert code == 1
    assert "it has more than 67108864 bytes" in err


def test_exported_zip_is_described_with_its_digest(
    tmp_path: Path,
    inspect: Inspect,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory, path = make_engine_dir(tmp_path / "engines"), tmp_path / "e.zip"
    assert _run_app(app, ["export", str(directory), "--zip", str(path)]) == 0
    pin = f"{path}#sha256={sha256_of_file(path)}"
    assert capsys.readouterr().out.split() == ["zip", "file:", pin]
    for given in (path, pin, f"file://{pin}"):
        code, out, _ = inspect(given, "--json")
        assert code == 0
        assert json.loads(out)["pin"].endswith(pin)
        assert Path(json.loads(out)["directory"]).is_relative_to(tmp_path / "cache")
    assert f"pinned: {pin}" in inspect(path)[1]
    code, out, err = inspect(f"{path}#sha256={'0' * 64}")
    assert (code, out, err.count("\n")) == (1, "", 1)

"""The deployed packages import and run without the packages of the exporter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.engine_dirs import make_engine_dir

BLOCKED_ALWAYS = ("torch", "onnx", "onnxscript")
BLOCKED_AT_START = (*BLOCKED_ALWAYS, "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")

IMPORT_ALL = """
import importlib, pkgutil
for package_name in {packages}:
    package = importlib.import_module(package_name)
    for module in pkgutil.walk_packages(package.__path__, package_name + "."):
        if module.name.rpartition(".")[2].startswith("cuda"):
            continue  # needs the CUDA packages, which a CPU installation does not have
        importlib.import_module(module.name)
"""


def run_blocked(code: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter where importing ``blocked`` fails."""
    block = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    return subprocess.run(
        [sys.executable, "-c", block + code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("package", ["mpn.engines", "mpn.runtime", "mpn.evaluation"])
def test_runtime_side_imports_without_torch_and_onnx(package: str) -> None:
    done = run_blocked(IMPORT_ALL.format(packages=[package]), BLOCKED_ALWAYS)
    assert done.returncode == 0, done.stderr


def test_blocking_blocks() -> None:
    """Control: the test above fails if torch were imported."""
    done = run_blocked("import torch", BLOCKED_ALWAYS)
    assert done.returncode != 0
    assert "torch" in done.stderr


def test_engines_open_and_run_without_torch_and_onnx(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path, external_data=True)
    code = (
        "import numpy as np\n"
        "from mpn.engines.open import open_engines\n"
        f"with open_engines({str(directory)!r}) as engines:\n"
        "    rgb_prob = np.ones((1, 4, 65, 65), np.float32)\n"
        "    print(engines.propagation.run({'rgb_prob': rgb_prob})['prob'].mean())\n"
    )
    done = run_blocked(code, BLOCKED_ALWAYS)
    assert done.stdout.strip() == "1.0", done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import mpn; print(mpn.__version__)",
        "import mpn.engines.open, mpn.engines.onnxruntime.engine, mpn.engines.directory.inspect",
        "sys.argv = ['mpn', '--help']\nfrom mpn.cli.main import main\nmain()",
        "sys.argv = ['mpn', 'inspect', '--help']\nfrom mpn.cli.main import main\nmain()",
    ],
)
def test_start_needs_no_runtime_at_all(code: str) -> None:
    done = run_blocked(code, BLOCKED_AT_START)
    assert done.returncode == 0, done.stderr


def test_inspect_command_imports_nothing_heavy() -> None:
    code = (
        "import mpn.cli.inspect\n"
        "heavy = {'numpy', 'cv2', 'scipy', 'av', 'PIL', 'mpn.engines', 'mpn.runtime'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = run_blocked("import sys\n" + code, ())
    assert done.stdout.strip() == "[]", done.stdout + done.stderr

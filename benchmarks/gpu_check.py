"""Measure everything that needs a GPU in one command, in less than 8 minutes.

    python benchmarks/gpu_check.py [-o FILE.json] [--engine-dir DIR ...] [--sections NAME,NAME]
    python benchmarks/gpu_check.py --dry-run

Runs from a source checkout, without network, with NumPy, SciPy and OpenCV; cuda-core,
cuda-bindings and NVRTC for the kernels; PyTorch and onnx for the comparison with it; onnxruntime or
TensorRT for engines. PyAV, Pillow, Typer and Rich are not needed. ``not_measured`` has one line for
each part that is missing, and the others run: the exit code is 0 if the result is written.

--dry-run runs the same code on a CPU at tiny sizes, with the kernels compiled by g++ through the
shim of the tests. It tests the code; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "src", ROOT):  # runs as a script, without an installed package
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

TOTAL_S = 450.0
BUDGETS_S = {
    "bandwidth": 15.0,
    "kernels": 90.0,
    "crf": 40.0,
    "masks": 60.0,
    "eager": 60.0,
    "engines": 90.0,
    "speed": 120.0,
    "finetuning": 40.0,
    "weight_swap": 30.0,
}
"""Time limit of each section in seconds, in the order of the sections."""


def stand_in_for(module: str) -> bool:
    """Register an empty module for one that is imported but not used here.

    Returns:
        Whether the module is missing.
    """
    try:
        importlib.import_module(module)
    except ImportError:
        sys.modules[module] = types.ModuleType(module)
        return True
    return False


def use_experimental_names() -> None:
    """Copy the names of ``cuda.core.experimental``, for cuda-core below 0.5."""
    try:
        core = importlib.import_module("cuda.core")
        if not hasattr(core, "Device"):
            older = importlib.import_module("cuda.core.experimental")
            for name in dir(older):
                if not name.startswith("_"):
                    setattr(core, name, getattr(older, name))
    except ImportError:
        pass  # the section that needs it reports it


def main(arguments: list[str] | None = None) -> int:
    """Run the sections, print one line for each, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--engine-dir", action="append", default=[], metavar="DIR")
    parser.add_argument("--sections", default=",".join(BUDGETS_S), metavar="NAME,NAME")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    wanted = given.sections.split(",")
    unknown = sorted(set(wanted) - set(BUDGETS_S))
    if unknown:
        parser.error(f"unknown section {unknown[0]}: there are {', '.join(BUDGETS_S)}")
    document = run(wanted, given.engine_dir, is_dry=given.dry_run)
    from benchmarks.report.schema import check_result

    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    check_result(document)
    print(f"wrote {given.out}; {len(document['not_measured'])} things could not run")
    for line in document["not_measured"]:
        print(f"  {line}")
    return 0


def run(wanted: list[str], engine_dirs: list[str], *, is_dry: bool) -> dict[str, Any]:
    """Run the sections and return the result in the common format."""
    absent = [name for name in ("av", "PIL", "PIL.Image") if stand_in_for(name)]
    use_experimental_names()
    from benchmarks.gpu.harness import DRY, Runner, Sizes
    from mpn.runtime.bench.result import benchmark_document, load_average

    before = load_average()
    with tempfile.TemporaryDirectory() as scratch:
        bench = open_bench(DRY if is_dry else Sizes(), engine_dirs, scratch, is_dry=is_dry)
        runner = Runner(bench, total_s=TOTAL_S)
        for name, section in sections().items():
            if name in wanted:
                runner.run(name, section, budget_s=BUDGETS_S[name])
        device = device_facts(bench)
        if bench.stream is not None and not is_dry:
            bench.stream.record().sync()
    not_measured = runner.could_not_run()
    if absent:
        not_measured.append(f"not installed, and not needed here: {', '.join(absent)}")
    document = benchmark_document(
        "gpu_check",
        {
            "backend": {
                "asked": "all that load",
                "used": "cpu, dry run" if is_dry else str(device.get("name", "none")),
                "note": "a dry run: its figures are meaningless" if is_dry else bench.why_no_stream,
                "threads": None,
            },
            "engine": None,
            "frame_size_hw": list(bench.sizes.frame_hw),
            "objects": list(bench.sizes.objects),
            "frames": bench.sizes.frames,
            "warmup": bench.sizes.warmup,
            "load_average_before": before,
            "not_measured": not_measured,
            "is_dry_run": is_dry,
            "device": device,
            "sections": runner.sections,
        },
        more_versions=more_versions(),
    )
    document["versions"].setdefault("opencv-python-headless", "not by pip")
    return document


def sections() -> dict[str, Any]:
    """Return every section by name; it imports its module when it runs."""
    found = {}
    for name in BUDGETS_S:
        module = (
            "kernels"
            if name in ("bandwidth", "kernels", "crf")
            else "pipeline"
            if name in ("masks", "speed")
            else "networks"
        )

        def section(bench: Any, budget: Any, module: str = module, name: str = name) -> Any:
            return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)(bench, budget)

        found[name] = section
    return found


def open_bench(sizes: Any, engine_dirs: list[str], scratch: str, *, is_dry: bool) -> Any:
    """Open the device or the shim, or store the reason why there is none."""
    from benchmarks.gpu.harness import Bench, one_line
    from mpn.engines.open import default_engine_dir

    stream, why = None, ""
    dirs = [str(default_engine_dir()), *engine_dirs]
    try:
        if is_dry:
            sys.path.insert(0, str(ROOT))
            from tests.builders.engine_dirs import make_engine_dir
            from tests.emulation.cuda_shim.shim import Shim
            from tests.emulation.streams import ShimStream

            stream = ShimStream(Shim(Path(tempfile.gettempdir()) / "mpn-cuda-shim"))
            dirs = [
                str(make_engine_dir(Path(scratch) / "tiny", with_osvos=True)),
                str(make_engine_dir(Path(scratch) / "tiny-target", with_target=True)),
                *engine_dirs,
            ]
        else:
            from mpn.cuda.device import CudaDevice

            stream = CudaDevice()
    except Exception as error:  # any error: the result contains it
        why = one_line(error)
    return Bench(sizes, is_dry, stream, why, dirs, [str(default_engine_dir()), *engine_dirs])


def device_facts(bench: Any) -> dict[str, Any]:
    """Return name, memory and driver of the GPU; empty without a GPU."""
    facts: dict[str, Any] = {"python": platform.python_version()}
    if bench.is_dry or bench.stream is None:
        return facts
    facts["arch"] = bench.stream.arch
    try:
        from cuda.bindings import driver

        _, name = driver.cuDeviceGetName(128, 0)
        _, _, total = driver.cuMemGetInfo()
        _, version = driver.cuDriverGetVersion()
        facts |= {
            "name": bytes(name).split(b"\0")[0].decode(),
            "memory_gib": round(int(total) / 2**30, 1),
            "driver_cuda_version": int(version),
        }
    except Exception as error:  # one fact less
        facts["why_no_name"] = str(error)
    return facts


def more_versions() -> dict[str, str]:
    """Return the versions of packages that the runtime does not list."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "onnx", "cupy-cuda13x", "cuda-core", "cuda-bindings",
                    "nvidia-cuda-nvrtc"):  # fmt: skip
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())

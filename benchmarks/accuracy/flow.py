"""Measure the endpoint error of flow sources on pairs with true flow.

    python -m benchmarks.accuracy.flow --pairs FOLDER [--engine-dir DIR ...] [--threads 2]
        [-o FILE.json]

FOLDER contains ``NAME-img0.png``, ``NAME-img1.png`` and ``NAME-gt.flo`` (Middlebury), or
``NAME_img1.ppm``, ``NAME_img2.ppm`` and ``NAME_flow.flo`` (FlyingChairs). Each source gets the
pairs at their own size; an engine resizes them to its own, as in a run. The sources are OpenCV's
DIS with each preset, and the flow source of each engine directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from benchmarks.accuracy.sequences import load_rgb
from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn._common.concurrency import OpenCvThreads
from mpn.engines.directory.entries import DIS_SOURCE, FlowSource
from mpn.engines.open import open_engines
from mpn.errors import InputError
from mpn.runtime.bench.result import (
    check_result_path,
    engine_facts,
    load_average,
    summary_ms,
)
from mpn.runtime.host.flow import DisFlow, flow_estimator_from, flow_px

PRESETS = ("ultrafast", "fast", "medium")
LAYOUTS = (("-gt.flo", "-img0.png", "-img1.png"), ("_flow.flo", "_img1.ppm", "_img2.ppm"))
Source = Callable[[np.ndarray, np.ndarray], np.ndarray]


def pairs_in(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield both frames of each pair and the flow between them.

    Frames are (H, W, 3) uint8 RGB, the flow is (2, H, W) in pixels.

    Raises:
        InputError: If the folder has no pairs, or a file cannot be read.
    """
    found = False
    for flow, first, second in LAYOUTS:
        for path in sorted(folder.rglob(f"[!.]*{flow}")):
            stem = str(path)[: -len(flow)]
            true_px = cv2.readOpticalFlow(str(path))
            if true_px is None:
                raise InputError(f"{path} cannot be read as a flow")
            found = True
            rgb0, rgb1 = (load_rgb(Path(stem + suffix)) for suffix in (first, second))
            yield rgb0, rgb1, true_px.transpose(2, 0, 1)
    if not found:
        raise InputError(f"{folder} has no pairs: NAME-img0.png, NAME-img1.png and NAME-gt.flo")


def measure(source: Source, folder: Path) -> dict[str, Any]:
    """Return the times, and the mean endpoint error in pixels per pair and overall."""
    errors, seconds = [], []
    for rgb0, rgb1, true_px in pairs_in(folder):
        begun = perf_counter()
        found_px = source(rgb0, rgb1)
        seconds.append(perf_counter() - begun)
        errors.append(float(np.hypot(*(found_px - true_px)).mean()))
    return {"epe_px": float(np.mean(errors)), "pairs_px": errors, "times": summary_ms(seconds)}


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    first, _, true_px = next(pairs_in(given.pairs))
    sources: dict[str, Any] = {}
    facts = None
    with OpenCvThreads(given.threads), ExitStack() as stack:
        for preset in PRESETS:
            dis = DisFlow(FlowSource(DIS_SOURCE, preset))
            sources[f"DIS {preset}"] = measure(
                lambda a, b, dis=dis: flow_px(dis, a, b), given.pairs
            )
        for directory in given.engine_dir:
            engines = stack.enter_context(
                open_engines(directory, backend="cpu", threads=given.threads)
            )
            facts = engine_facts(engines)
            flow = flow_estimator_from(engines)
            name = f"{facts['name']} ({engines.manifest.flow.source})"
            sources[name] = measure(lambda a, b, flow=flow: flow_px(flow, a, b), given.pairs)
    sources["no motion"] = measure(lambda a, b: np.zeros_like(true_px), given.pairs)
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=facts,
            frame_size_hw=first.shape[:2],
            objects=None,
            frames=sum(1 for _ in pairs_in(given.pairs)),
            warmup=0,
            load_average_before=before,
            not_measured=[] if given.engine_dir else ["flow networks: --engine-dir"],
        ),
        "sources": sources,
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--engine-dir", type=Path, action="append", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("flow_accuracy.json"))
    given = parser.parse_args()
    body = measured("flow_accuracy", benchmark, given)
    if body is None:
        return 1
    for name, found in body["sources"].items():
        print(f"{name:28} {found['epe_px']:.3f} px")
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

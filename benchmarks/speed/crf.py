"""Measure the time of the DenseCRF on one thread, with pydensecrf if installed.

    python -m benchmarks.speed.crf [--image FRAME.jpg --mask MASK.png] [--rounds 15] [-o FILE.json]

A case is one call of ``dense_crf`` with 5 iterations, including its kernels: regions of interest of
64x64 and 256x256 pixels with 2 labels, and frames of 854x480 with 2 and 4 labels, each with the
default parameters, with wider ones, and with those of pydensecrf's example. The picture is a frame
of the built-in clip or the given one; the labels are its mask, blurred and with noise. Both sides
get the same arrays. ``wall`` is elapsed time, ``cpu`` processor time. Only the latter is meaningful
on a busy machine.

pydensecrf is no dependency and no extra installs it: 1.0rc3 builds on Python 3.11 with Cython below
3 after its stale ``eigen.cpp`` and ``densecrf.cpp`` are deleted.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy reads it when it is imported

import cv2
import numpy as np

from benchmarks.accuracy.sequences import load_rgb
from benchmarks.report.schema import cpu_backend, result_header, write_result
from mpn.errors import InputError
from mpn.evaluation import load_annotation as load_truth
from mpn.runtime.bench.result import check_result_path, load_average, summary_ms
from mpn.runtime.crf.dense import dense_crf
from mpn.runtime.crf.options import ResolvedCrf
from mpn.synthetic import render_clip

FRAME_HW = (480, 854)
CASES = (
    ("roi", (64, 64), 2),
    ("roi", (256, 256), 2),
    ("frame", FRAME_HW, 2),
    ("frame", FRAME_HW, 4),
)
ITERATIONS = 5
_DEFAULTS = ResolvedCrf()
PARAMETERS: Mapping[str, Mapping[str, float]] = {
    "default": {
        "sxy_gaussian": _DEFAULTS.sxy_gaussian,
        "compat_gaussian": _DEFAULTS.compat_gaussian,
        "sxy_bilateral": _DEFAULTS.sxy_bilateral,
        "srgb_bilateral": _DEFAULTS.srgb_bilateral,
        "compat_bilateral": _DEFAULTS.compat_bilateral,
    },
    "wide": {  # see docs/crf.md
        "sxy_gaussian": 2,
        "compat_gaussian": 1,
        "sxy_bilateral": 30,
        "srgb_bilateral": 5,
        "compat_bilateral": 5,
    },
    "pydensecrf example": {
        "sxy_gaussian": 3,
        "compat_gaussian": 3,
        "sxy_bilateral": 80,
        "srgb_bilateral": 13,
        "compat_bilateral": 10,
    },
}
Side = Callable[[np.ndarray, np.ndarray, Mapping[str, float]], np.ndarray]


def ours(unary: np.ndarray, rgb: np.ndarray, parameters: Mapping[str, float]) -> np.ndarray:
    """Return the marginals of this package."""
    return dense_crf(unary, rgb, iterations=ITERATIONS, **parameters)  # type: ignore[arg-type]


def pydensecrf_side() -> Side | None:
    """Return a function for the marginals of pydensecrf; None if it is not installed."""
    try:
        densecrf = import_module("pydensecrf.densecrf")
    except ModuleNotFoundError:
        return None

    def side(unary: np.ndarray, rgb: np.ndarray, parameters: Mapping[str, float]) -> np.ndarray:
        labels, height, width = unary.shape
        crf = densecrf.DenseCRF2D(width, height, labels)
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1)))
        crf.addPairwiseGaussian(
            sxy=parameters["sxy_gaussian"], compat=parameters["compat_gaussian"]
        )
        crf.addPairwiseBilateral(
            sxy=parameters["sxy_bilateral"],
            srgb=parameters["srgb_bilateral"],
            rgbim=np.ascontiguousarray(rgb),
            compat=parameters["compat_bilateral"],
        )
        return np.array(crf.inference(ITERATIONS)).reshape(unary.shape)

    return side


def picture(image: Path | None, mask: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (H, W, 3) uint8 RGB and (H, W) uint8 labels of one frame.

    Raises:
        InputError: If the image cannot be read, or a file is smaller than the measured frame.
    """
    if image is None or mask is None:
        frame = list(render_clip(frames=13, size_hw=FRAME_HW))[-1]
        return frame.rgb, frame.labels
    rgb = load_rgb(image)
    labels = load_truth(mask)
    for name, size_hw in ((image, rgb.shape[:2]), (mask, labels.shape)):
        if size_hw[0] < FRAME_HW[0] or size_hw[1] < FRAME_HW[1]:
            raise InputError(
                f"{name} is {size_hw[1]}x{size_hw[0]}, give one of at least "
                f"{FRAME_HW[1]}x{FRAME_HW[0]} (width x height)"
            )
    return rgb, labels


def case_arrays(
    rgb: np.ndarray, ids: np.ndarray, size_hw: tuple[int, int], labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return unary and picture of one case, a window around the objects.

    Labels beyond the objects of the picture are stripes of the background.
    """
    rows, columns = np.nonzero(ids)
    y0 = min(max(int(rows.mean()) - size_hw[0] // 2, 0), ids.shape[0] - size_hw[0])
    x0 = min(max(int(columns.mean()) - size_hw[1] // 2, 0), ids.shape[1] - size_hw[1])
    window = (slice(y0, y0 + size_hw[0]), slice(x0, x0 + size_hw[1]))
    stripes = (np.arange(size_hw[1]) * labels // size_hw[1]).astype(np.uint8)
    wanted = np.where(ids[window] > 0, 1, stripes if labels > 2 else np.uint8(0))
    rng = np.random.default_rng(0)
    logits = np.stack(
        [
            6 * cv2.GaussianBlur((wanted == label).astype(np.float32), (0, 0), 5)
            + rng.normal(0, 0.5, size_hw)
            for label in range(labels)
        ]
    )
    prob = np.exp(logits - logits.max(axis=0))
    prob /= prob.sum(axis=0)
    unary = -np.log(np.clip(prob, 1e-5, 1)).astype(np.float32)
    return unary, np.ascontiguousarray(rgb[window])


def measure(
    sides: Mapping[str, Side],
    unary: np.ndarray,
    rgb: np.ndarray,
    parameters: Mapping[str, float],
    rounds: int,
) -> dict[str, Any]:
    """Run the sides interleaved, in rotating order; return the figures of one case."""
    wall_s: dict[str, list[float]] = {name: [] for name in sides}
    cpu_s: dict[str, list[float]] = {name: [] for name in sides}
    q: dict[str, np.ndarray] = {}
    order = list(sides)
    for number in range(rounds + 1):
        for name in order:
            wall, cpu = perf_counter(), process_time()
            q[name] = sides[name](unary, rgb, parameters)
            wall, cpu = perf_counter() - wall, process_time() - cpu
            if number:  # the first round is the warm-up
                wall_s[name].append(wall)
                cpu_s[name].append(cpu)
        order.append(order.pop(0))
    figures: dict[str, Any] = {
        name: {"wall": summary_ms(wall_s[name]), "cpu": summary_ms(cpu_s[name])} for name in sides
    }
    if "pydensecrf" in sides:
        figures["ratio_of_medians"] = _ratio(cpu_s, np.median)
        figures["ratio_of_minima"] = _ratio(cpu_s, np.min)
        figures["agreement"] = {
            "mean_abs_dq": round(float(np.abs(q["ours"] - q["pydensecrf"]).mean()), 6),
            "argmax_equal": round(
                float((q["ours"].argmax(axis=0) == q["pydensecrf"].argmax(axis=0)).mean()), 6
            ),
        }
    return figures


def _ratio(cpu_s: Mapping[str, list[float]], of: Callable[[list[float]], Any]) -> float:
    return round(float(of(cpu_s["pydensecrf"]) / of(cpu_s["ours"])), 2)


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--image", type=Path, help="frame; needs --mask [frame of the built-in clip]"
    )
    parser.add_argument("--mask", type=Path, help="palette PNG of the frame")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=Path("crf_speed.json"))
    options = parser.parse_args()
    if (options.image is None) != (options.mask is None):
        parser.error("--image and --mask must be given together")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    check_result_path(options.output)
    cv2.setNumThreads(1)
    load_before = load_average()
    sides: dict[str, Side] = {"ours": ours}
    not_measured = ["CRF on a GPU"]
    other = pydensecrf_side()
    if other is None:
        not_measured.append("pydensecrf: it is not installed")
    else:
        sides["pydensecrf"] = other
    rgb, ids = picture(options.image, options.mask)
    results = []
    for set_name, parameters in PARAMETERS.items():
        for what, size_hw, labels in CASES:
            arrays = case_arrays(rgb, ids, size_hw, labels)
            entry = {
                "name": f"{what}, {set_name}",
                "size_hw": list(size_hw),
                "labels": labels,
                "iterations": ITERATIONS,
                "parameters": dict(parameters),
                **measure(sides, *arrays, parameters, options.rounds),
            }
            results.append(entry)
            print(line_of(entry), flush=True)
    body = {
        **result_header(
            backend=cpu_backend(1),
            engine=None,
            frame_size_hw=FRAME_HW,
            objects=None,
            frames=None,
            warmup=1,
            load_average_before=load_before,
            not_measured=not_measured,
        ),
        "picture": "built-in clip, frame 12"
        if options.image is None
        else "/".join(options.image.parts[-2:]),
        "pydensecrf_version": pydensecrf_version(),
        "results": results,
    }
    write_result(options.output, "crf_speed", body)


def line_of(entry: Mapping[str, Any]) -> str:
    """Return one case as a line of text."""
    height, width = entry["size_hw"]
    text = (
        f"{entry['name']:26} {width}x{height}, {entry['labels']} labels: "
        f"{entry['ours']['cpu']['median_ms']:.0f} ms"
    )
    if "pydensecrf" not in entry:
        return f"{text}; pydensecrf not measured"
    agreement = entry["agreement"]
    return (
        f"{text}, pydensecrf {entry['pydensecrf']['cpu']['median_ms']:.0f} ms, ratio "
        f"{entry['ratio_of_medians']}; mean |dQ| {agreement['mean_abs_dq']:.1e}, argmax equal "
        f"{agreement['argmax_equal']:.4f}"
    )


def pydensecrf_version() -> str | None:
    """Return the version of the installed package, or None."""
    try:
        return version("pydensecrf")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

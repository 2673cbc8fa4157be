"""Time the dense CRF, and pydensecrf beside it where that is installed, on one thread.

    python benchmarks/crf_speed.py [--image FRAME.jpg --mask MASK.png] [--rounds 15]
        [-o crf_speed.json]

Each case is one call of ``dense_crf`` with 5 iterations, the kernels built in it: a region of
interest of 64x64 and of 256x256 with 2 labels, and a whole frame of 854x480 with 2 and with 4, for
the default parameters, for wider ones, and for those of pydensecrf's example. The picture is a
frame of the built-in clip, or the one given; the labels are its mask, blurred and noisy. Both sides
get the same arrays, in turn. ``wall`` is what a clock says, ``cpu`` what the process used: on a
busy machine only the latter means something.

pydensecrf is no dependency and is not installed by any extra: PyPI's 1.0rc3 builds on Python 3.11
with Cython below 3 once its stale ``eigen.cpp`` and ``densecrf.cpp`` are deleted.
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

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read once, when numpy is imported

import cv2
import numpy as np

from facts import cpu_backend, head, summary_ms, write_result
from mpn.errors import InputError
from mpn.evaluation import load_annotation as load_truth
from mpn.runtime.bench.result import check_result_path, load_average
from mpn.runtime.crf.dense import dense_crf
from mpn.runtime.crf.refine import ResolvedCrf
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
    """Marginals by this package."""
    return dense_crf(unary, rgb, iterations=ITERATIONS, **parameters)  # type: ignore[arg-type]


def pydensecrf_side() -> Side | None:
    """Marginals by pydensecrf, or None where it is not installed."""
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
    """(H, W, 3) uint8 RGB and (H, W) uint8 ids of one frame.

    Raises:
        InputError: If the image cannot be read, or one of the two is smaller than the frame timed.
    """
    if image is None or mask is None:
        frame = list(render_clip(frames=13, size_hw=FRAME_HW))[-1]
        return frame.rgb, frame.labels
    bgr = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if bgr is None:
        raise InputError(f"{image}: no such image, or not readable")
    labels = load_truth(mask)
    for name, size_hw in ((image, bgr.shape[:2]), (mask, labels.shape)):
        if size_hw[0] < FRAME_HW[0] or size_hw[1] < FRAME_HW[1]:
            raise InputError(
                f"{name} is {size_hw[1]}x{size_hw[0]}, give one of at least "
                f"{FRAME_HW[1]}x{FRAME_HW[0]} (width x height)"
            )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), labels


def case_arrays(
    rgb: np.ndarray, ids: np.ndarray, size_hw: tuple[int, int], labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Unary and picture of one case: a window around the objects, and an unsure guess of them.

    More labels than the picture has objects are taken from the background, in stripes.
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
    """Run the sides in turn, their order turning too; the figures of one entry."""
    wall_s: dict[str, list[float]] = {name: [] for name in sides}
    cpu_s: dict[str, list[float]] = {name: [] for name in sides}
    q: dict[str, np.ndarray] = {}
    order = list(sides)
    for number in range(rounds + 1):
        for name in order:
            wall, cpu = perf_counter(), process_time()
            q[name] = sides[name](unary, rgb, parameters)
            wall, cpu = perf_counter() - wall, process_time() - cpu
            if number:  # the first round warms up
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
    """Parse, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="a frame, with --mask; default: the clip's")
    parser.add_argument("--mask", type=Path, help="its palette PNG")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=Path("crf_speed.json"))
    options = parser.parse_args()
    if (options.image is None) != (options.mask is None):
        parser.error("--image and --mask belong together")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    check_result_path(options.output)
    cv2.setNumThreads(1)
    load_before = load_average()
    sides: dict[str, Side] = {"ours": ours}
    not_measured = ["CRF on another device than the CPU"]
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
        **head(
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
    """One case for people."""
    height, width = entry["size_hw"]
    said = (
        f"{entry['name']:26} {width}x{height}, {entry['labels']} labels: "
        f"{entry['ours']['cpu']['median_ms']:.0f} ms"
    )
    if "pydensecrf" not in entry:
        return f"{said}; pydensecrf not measured"
    agreement = entry["agreement"]
    return (
        f"{said}, pydensecrf {entry['pydensecrf']['cpu']['median_ms']:.0f} ms, ratio "
        f"{entry['ratio_of_medians']}; mean |dQ| {agreement['mean_abs_dq']:.1e}, argmax equal "
        f"{agreement['argmax_equal']:.4f}"
    )


def pydensecrf_version() -> str | None:
    """Of the installed one; None without it, or where it was not installed as a package."""
    try:
        return version("pydensecrf")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

"""Time J and F against a plain transcription of their definitions, interleaved, on one thread.

Both sides get the same arrays and must return the same values, else nothing is reported. Timed are:

* J and F of one object in one frame, from two bool masks of the whole frame (``mask``);
* J as the evaluator pays for it, on the crop that F needs anyway, whose cost is in F (``crop``);
* J of one object in a whole sequence, (T, H, W) masks, the official tool's form (``sequence``);
* J and F of all objects of one frame from label maps, the evaluator's whole work (``labels``).

    python benchmarks/evaluation_speed.py [--rounds 40] [-o evaluation_speed.json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.evaluation import plain
from tests.evaluation.scenes import blob_labels

from mpn.evaluation import boundary_measure, boundary_measures, region_similarity
from mpn.evaluation.boundary import radius_px_from_tolerance, union_window
from mpn.runtime.benchmark_result import (
    benchmark_document,
    load_average,
    save_result,
    summary_ms,
)

SIZE_HW = (480, 854)
FRAMES = 12
"""Different frames in turn, 10 MB of labels: neither side finds its input in a cache close by."""
OBJECTS = (1, 2, 3, 5)
RADIUS_PX = radius_px_from_tolerance(0.008, SIZE_HW)

Frame = tuple[Any, ...]


def labels_ours(
    gt_labels: np.ndarray, pred_labels: np.ndarray, num_objects: int
) -> tuple[list[float], list[float]]:
    """J and F of every object as ``SequenceEvaluator`` computes them, one crop for both."""
    window = union_window(gt_labels, pred_labels)
    gt_part, pred_part = gt_labels[window], pred_labels[window]
    pairs = [(gt_part == k, pred_part == k) for k in range(1, num_objects + 1)]
    return [region_similarity(*pair) for pair in pairs], boundary_measures(pairs, RADIUS_PX)


def labels_plain(
    gt_labels: np.ndarray, pred_labels: np.ndarray, num_objects: int
) -> tuple[list[float], list[float]]:
    """J and F of every object by definition."""
    return (
        plain.region_of_labels(gt_labels, pred_labels, num_objects),
        plain.boundary_of_labels(gt_labels, pred_labels, num_objects),
    )


def sequence_ours(gt_masks: np.ndarray, pred_masks: np.ndarray) -> list[float]:
    """J of one object in each frame of a sequence."""
    return [region_similarity(*pair) for pair in zip(gt_masks, pred_masks, strict=True)]


def label_frames(num_objects: int) -> list[Frame]:
    """Ground truth and a prediction a few pixels off, object count, for each frame."""
    return [
        (
            blob_labels(num_objects, SIZE_HW, num_objects, shift_px=(2 * t, t)),
            blob_labels(num_objects, SIZE_HW, num_objects, shift_px=(2 * t + 5, t - 3)),
            num_objects,
        )
        for t in range(FRAMES)
    ]


def compare(
    name: str,
    sides: dict[str, Callable[..., Any]],
    frames: list[Frame],
    *,
    rounds: int,
    per_call: int = 1,
    **facts: Any,
) -> dict[str, Any]:
    """Run both sides in turn on the same frame, their order turning too; one entry of the report.

    Args:
        name: What is computed.
        sides: ``ours`` and ``plain``.
        frames: Arguments of the calls, taken in turn; the first time round warms up.
        rounds: Timed calls of each side.
        per_call: Frames that one call works on; times are given per frame.
        facts: Further fields of the entry.
    """
    for frame in frames:
        if not np.array_equal(*(np.asarray(side(*frame)) for side in sides.values())):
            raise SystemExit(f"{name}: the values differ from the plain transcription: no figures")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for number in range(rounds + len(frames)):
        for side in order:
            start = perf_counter()
            sides[side](*frames[number % len(frames)])
            if number >= len(frames):
                seconds[side].append((perf_counter() - start) / per_call)
        order.append(order.pop(0))
    medians = {side: float(np.median(values)) for side, values in seconds.items()}
    return {
        "name": name,
        **facts,
        **{side: summary_ms(values) for side, values in seconds.items()},
        "ratio_of_medians": round(medians["plain"] / medians["ours"], 2),
        "ratio_of_minima": round(min(seconds["plain"]) / min(seconds["ours"]), 2),
    }


def _crop(gt_mask: np.ndarray, pred_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    window = union_window(gt_mask.view(np.uint8), pred_mask.view(np.uint8))
    return gt_mask[window].copy(), pred_mask[window].copy()


def benchmark(rounds: int) -> list[dict[str, Any]]:
    """Every comparison."""
    masks: list[Frame] = [(gt == 1, pred == 1) for gt, pred, _ in label_frames(1)]
    sequence = (np.stack([pair[0] for pair in masks]), np.stack([pair[1] for pair in masks]))
    covered = round(float(np.mean([pair[0].mean() for pair in masks])), 3)
    entries = [
        compare(
            "crop J",
            {
                "ours": lambda whole, crop: region_similarity(*crop),
                "plain": lambda whole, crop: plain.region(*whole),
            },
            [(pair, _crop(*pair)) for pair in masks],
            rounds=rounds,
            objects=1,
            covered_fraction=covered,
        ),
        compare(
            "mask J",
            {"ours": region_similarity, "plain": plain.region},
            masks,
            rounds=rounds,
            objects=1,
            covered_fraction=covered,
        ),
        compare(
            "mask F",
            {"ours": boundary_measure, "plain": plain.boundary},
            masks,
            rounds=rounds,
            objects=1,
            covered_fraction=covered,
        ),
        compare(
            "sequence J",
            {"ours": sequence_ours, "plain": plain.region_of_sequence},
            [sequence],
            rounds=rounds,
            per_call=FRAMES,
            objects=1,
            covered_fraction=covered,
        ),
    ]
    for num_objects in OBJECTS:
        frames = label_frames(num_objects)
        entries.append(
            compare(
                "labels J and F",
                {"ours": labels_ours, "plain": labels_plain},
                frames,
                rounds=rounds,
                objects=num_objects,
                covered_fraction=round(float(np.mean([f[0] > 0 for f in frames])), 3),
            )
        )
    return entries


def main() -> None:
    """Parse, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, default=Path("evaluation_speed.json"))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    body = {
        "threads": 1,
        "size_hw": list(SIZE_HW),
        "boundary_radius_px": RADIUS_PX,
        "load_average": load_average(),
        "results": benchmark(options.rounds),
    }
    save_result(options.output, benchmark_document("evaluation_speed", body))
    for entry in body["results"]:
        print(
            f"{entry['name']:16} {entry['objects']} objects: {entry['ours']['median_ms']:.3f} ms, "
            f"plain {entry['plain']['median_ms']:.3f} ms, ratio {entry['ratio_of_medians']} "
            f"(of minima {entry['ratio_of_minima']})"
        )


if __name__ == "__main__":
    main()

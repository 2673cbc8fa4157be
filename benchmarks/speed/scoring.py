"""Measure the time of J and F against a reference implementation.

    python -m benchmarks.speed.scoring [--rounds 40] [-o FILE.json]

The sides are interleaved on one thread. Both get the same arrays and must return the same values,
otherwise there is no result. The reference (tests/evaluation/plain.py) is a direct transcription of
davis2017-evaluation. Times are CPU time of the thread per frame, which is less sensitive to a busy
machine than elapsed time.

* ``J of masks``, ``F of masks``: one object, two bool masks of the whole frame. The sides alternate
  after a pass over all frames, as J is computed in practice: one frame after another.
* ``J of masks, call by call``: the sides alternate after each frame, so each call finds the caches
  filled by the other side. The worst case for the same call.
* ``J of masks, in the cache``: the same pair again and again.
* ``J beside F``: J on the crop that F needs anyway, as the evaluator computes it.
* ``J of a sequence``: one object, (T, H, W) masks in one call, as in the official tool.
* ``J and F from labels``: all objects of a frame from its label maps, frame by frame.
* ``whole sequence``: from the label maps of a sequence to J and F of all objects. This package
  streams; the reference has its arrays in the layout of the official tool.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from time import thread_time
from typing import Any

import cv2
import numpy as np

from benchmarks.report.schema import cpu_backend, result_header, write_result
from mpn.evaluation import (
    SequenceEvaluator,
    boundary_measure,
    measures_from_labels,
    region_similarity,
)
from mpn.evaluation.boundary import radius_px_from_tolerance, union_window
from mpn.runtime.bench.result import load_average, summary_ms
from tests.evaluation.scenes import blob_labels
from tests.reference import scoring as plain

SIZE_HW = (480, 854)
FRAMES = 12
"""Number of different frames, 10 MB of labels: no input is in a CPU cache."""
OBJECTS = (1, 2, 3, 5)
SEQUENCE_OBJECTS = (1, 3)
RADIUS_PX = radius_px_from_tolerance(0.008, SIZE_HW)

Frame = tuple[Any, ...]
Labels = Sequence[np.ndarray]


def labels_ours(
    gt_labels: np.ndarray, pred_labels: np.ndarray, num_objects: int
) -> tuple[list[float], list[float]]:
    """Return J and F of every object as ``SequenceEvaluator`` computes them."""
    return measures_from_labels(gt_labels, pred_labels, num_objects, RADIUS_PX)


def labels_plain(
    gt_labels: np.ndarray, pred_labels: np.ndarray, num_objects: int
) -> tuple[list[float], list[float]]:
    """Return J and F of every object by the reference."""
    return (
        plain.region_of_labels(gt_labels, pred_labels, num_objects),
        plain.boundary_of_labels(gt_labels, pred_labels, num_objects),
    )


def region_of_sequence_ours(gt_masks: np.ndarray, pred_masks: np.ndarray) -> list[float]:
    """Return J of one object in each frame of a sequence."""
    return [region_similarity(*pair) for pair in zip(gt_masks, pred_masks, strict=True)]


def sequence_ours(gt: Labels, pred: Labels, num_objects: int) -> tuple[list[list[float]], ...]:
    """Return J and F per object and frame, without first and last frame."""
    evaluator = SequenceEvaluator("sequence")
    for pair in zip(gt, pred, strict=True):
        evaluator.feed(*pair)
    objects = evaluator.conclude().objects
    assert len(objects) == num_objects
    return [list(k.region_values) for k in objects], [list(k.boundary_values) for k in objects]


def sequence_plain(gt: Labels, pred: Labels, num_objects: int) -> tuple[list[list[float]], ...]:
    """Return the same values by the reference, in the official array layout."""
    return plain.measures_of_sequence(gt[1:-1], pred[1:-1], num_objects)


def label_frames(num_objects: int) -> list[Frame]:
    """Return ground truth, a prediction shifted by a few pixels and K for each frame."""
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
    in_a_row: int = FRAMES,
    per_call: int = 1,
    **facts: Any,
) -> dict[str, Any]:
    """Run both sides interleaved, in rotating order; return one entry.

    Args:
        name: Name of the entry.
        sides: ``ours`` and ``plain``.
        frames: Arguments of the calls.
        rounds: Timed passes over all frames per side, after one warm-up pass.
        in_a_row: Calls of a side before the other side runs.
        per_call: Frames per call; times are per frame.
        facts: Further fields of the entry.
    """
    for frame in frames:
        if not np.array_equal(*(np.asarray(side(*frame)) for side in sides.values())):
            raise SystemExit(f"{name}: the values differ from the reference: no result")
    blocks = [frames[start : start + in_a_row] for start in range(0, len(frames), in_a_row)]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for number in range(rounds + 1):
        for block in blocks:
            for side in order:
                call = sides[side]
                for frame in block:
                    start = thread_time()
                    call(*frame)
                    elapsed_s = thread_time() - start
                    if number:
                        seconds[side].append(elapsed_s / per_call)
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
    """Run all comparisons."""
    masks: list[Frame] = [(gt == 1, pred == 1) for gt, pred, _ in label_frames(1)]
    sequence = (np.stack([pair[0] for pair in masks]), np.stack([pair[1] for pair in masks]))
    one = {"objects": 1, "covered_fraction": _covered([pair[0] for pair in masks])}
    region_sides = {"ours": region_similarity, "plain": plain.region}
    entries = [
        compare("J of masks", region_sides, masks, rounds=rounds, **one),
        compare("J of masks, call by call", region_sides, masks, rounds=rounds, in_a_row=1, **one),
        compare("J of masks, in the cache", region_sides, masks[:1] * FRAMES, rounds=rounds, **one),
        compare(
            "J beside F",
            {
                "ours": lambda whole, crop: region_similarity(*crop),
                "plain": lambda whole, crop: plain.region(*whole),
            },
            [(pair, _crop(*pair)) for pair in masks],
            rounds=rounds,
            **one,
        ),
        compare(
            "J of a sequence",
            {"ours": region_of_sequence_ours, "plain": plain.region_of_sequence},
            [sequence],
            rounds=rounds,
            per_call=FRAMES,
            **one,
        ),
        compare(
            "F of masks",
            {"ours": boundary_measure, "plain": plain.boundary},
            masks,
            rounds=rounds,
            **one,
        ),
    ]
    for num_objects in OBJECTS:
        frames = label_frames(num_objects)
        entries.append(
            compare(
                "J and F from labels",
                {"ours": labels_ours, "plain": labels_plain},
                frames,
                rounds=rounds,
                objects=num_objects,
                covered_fraction=_covered([frame[0] for frame in frames]),
            )
        )
    for num_objects in SEQUENCE_OBJECTS:
        frames = label_frames(num_objects)
        gt, pred, _ = zip(*frames, strict=True)
        entries.append(
            compare(
                "whole sequence",
                {"ours": sequence_ours, "plain": sequence_plain},
                [(gt, pred, num_objects)],
                rounds=rounds,
                per_call=FRAMES,
                objects=num_objects,
                covered_fraction=_covered(gt),
            )
        )
    return entries


def _covered(labels: Labels) -> float:
    return round(float(np.mean([(frame > 0).mean() for frame in labels])), 3)


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("-o", "--out", type=Path, default=Path("evaluation_speed.json"))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    load_before = load_average()
    results = benchmark(options.rounds)
    for entry in results:
        print(
            f"{entry['name']:24} K = {entry['objects']}: {entry['ours']['median_ms']:.3f} ms, "
            f"reference {entry['plain']['median_ms']:.3f} ms, ratio {entry['ratio_of_medians']} "
            f"(of minima {entry['ratio_of_minima']})"
        )
    body = result_header(
        backend=cpu_backend(threads=1),
        engine=None,
        frame_size_hw=SIZE_HW,
        objects=OBJECTS,
        frames=FRAMES * options.rounds,
        warmup=FRAMES,
        load_average_before=load_before,
        not_measured=[
            "the official package: the reference is a transcription of it",
            "reading the PNG files, which takes the same time on both sides",
        ],
    )
    body |= {"clock": "CPU time of the thread", "boundary_radius_px": RADIUS_PX, "results": results}
    write_result(options.out, "evaluation_speed", body)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()

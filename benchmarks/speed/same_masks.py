"""Compare masks and time of two source trees over DAVIS sequences.

    python -m benchmarks.speed.same_masks --old SRC --new SRC --davis-root DAVIS [--set val]
        [--sequences A,B] [--old-engine-dir DIR] [--new-engine-dir DIR] [--options="--fast"]
        [--new-options="--no-review"] [--frames N] [--repeats 2] [--threads 2] [-o FILE.json]

SRC is the folder that contains the package ``mpn`` of a revision. Each side runs ``mpn run`` in a
separate process, from the first annotation as mask. The sides alternate for each sequence, and
the first one changes in each repeat. Each side keeps its cache of fine-tuned weights.

``is_equal`` states whether the ids of all masks are the same. ``wall`` is the time of all frames of
all sequences after fine-tuning, by run.json. ``ratio`` is old divided by new. Exits with 1 if masks
differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.sequences import add_data_arguments, dataset_from_arguments
from benchmarks.report.schema import cpu_backend, measured, result_header
from benchmarks.speed.releases import (
    NEW,
    OLD,
    Release,
    add_release_arguments,
    release_facts,
    releases_from,
)
from mpn._common.files import visible_files
from mpn.errors import InputError
from mpn.evaluation import load_annotation
from mpn.runtime.bench.result import check_result_path, load_average, summary_ms


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    releases = releases_from(given)
    dataset, images = dataset_from_arguments(given)
    common = given.options.split()
    options = {OLD: common, NEW: [*common, *given.new_options.split()]}
    sequences: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {OLD: [], NEW: []}
    with tempfile.TemporaryDirectory(prefix="mpn-masks-") as folder:
        root = Path(folder)
        videos = root / "videos"  # outside of a DAVIS tree, whose results are in its layout
        for sequence in dataset.sequences:
            (videos / sequence.name).mkdir(parents=True)
            for path in visible_files(images / sequence.name, "*.jpg"):
                (videos / sequence.name / path.name).symlink_to(path.resolve())
        for repeat in range(given.repeats):
            total = {OLD: 0.0, NEW: 0.0}
            for sequence in dataset.sequences:
                sides = list(releases.items())
                outs = {name: root / f"{repeat}-{sequence.name}-{name}" for name in releases}
                for name, release in sides if repeat % 2 == 0 else sides[::-1]:
                    release.run(
                        videos / sequence.name,
                        sequence.annotation_paths[0],
                        outs[name],
                        root / f"cache-{name}",
                        threads=given.threads,
                        end=given.frames,
                        options=options[name],
                    )
                    total[name] += release.report["frames"] / release.report["fps_after_finetune"]
                found = compared(*(out / "masks" for out in outs.values()))
                known = sequences.setdefault(sequence.name, found)
                known["differing"] = max(known["differing"], found["differing"])
                print(f"{sequence.name}: {found}", file=sys.stderr, flush=True)
            for name, spent_s in total.items():
                seconds[name].append(spent_s)
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=None,
            frame_size_hw=(480, 854),
            objects=None,
            frames=sum(found["frames"] for found in sequences.values()),
            warmup=0,
            load_average_before=before,
            not_measured=["GPU (CUDA, TensorRT): the networks ran on the CPU"],
        ),
        "data": {"set": given.set, "sequences": sequences},
        "options": given.options,
        "new_options": given.new_options,
        "repeats": given.repeats,
        "releases": {name: release_facts(release) for name, release in releases.items()},
        "is_equal": not any(found["differing"] for found in sequences.values()),
        "wall": _wall(releases, seconds),
    }


def compared(old: Path, new: Path) -> dict[str, Any]:
    """Count the masks, and those that differ or are missing on one side.

    Raises:
        InputError: If a side has no mask.
    """
    names = sorted({path.name for folder in (old, new) for path in folder.glob("*.png")})
    if not names:
        raise InputError(f"no masks in {old} and {new}")
    differing = sum(
        not (old / name).is_file()
        or not (new / name).is_file()
        or not np.array_equal(load_annotation(old / name), load_annotation(new / name))
        for name in names
    )
    return {"frames": len(names), "differing": differing}


def _wall(releases: dict[str, Release], seconds: dict[str, list[float]]) -> dict[str, Any]:
    times = {name: summary_ms(seconds[name]) for name in releases}
    return {
        **times,
        "ratio": {
            f"of_{plural}": round(times[OLD][key] / times[NEW][key], 3)
            for plural, key in (("medians", "median_ms"), ("minima", "min_ms"))
        },
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_release_arguments(parser)
    add_data_arguments(parser, default_set="val")
    parser.add_argument("--options", default="", help="of mpn run, such as --fast")
    parser.add_argument(
        "--new-options", default="", help="of the new side alone, such as --no-review"
    )
    parser.add_argument("--frames", type=int, help="of each sequence [all]")
    parser.add_argument("--repeats", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("same_masks.json"))
    given = parser.parse_args()
    body = measured("same_masks", benchmark, given)
    if body is None:
        return 1
    print(f"written: {given.out}")
    return 0 if body["is_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compare first mask and wall FPS of the command lines of two source trees.

    python -m benchmarks.speed.releases --old SRC --new SRC [--old-engine-dir DIR]
        [--new-engine-dir DIR] [--objects 1,3,5] [--frames 96] [--repeats 3] [--threads 2]
        [-o FILE.json]

SRC is the folder that contains the package ``mpn`` of a release. Each figure comes from ``mpn run``
in a separate process, with the defaults of its release. The trees alternate, and the first one
changes in each repeat. Both use the packages of this Python.

``first_mask`` is the time from open engines to the written first mask: run.json of a run of one
frame, with an empty cache of fine-tuned weights. ``wall`` is the time per frame of the whole clip,
from decoding to written masks and overlay: run.json of a run that uses the cached weights.
``process`` is the time of the process of the first run, with its start and the opening of the
engines. ``ratio`` is old divided by new.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn.errors import InputError
from mpn.export.options import frame_size_hw_from_text
from mpn.masks import save_labels
from mpn.runtime.bench.result import check_result_path, load_average, summary_ms
from mpn.runtime.bench.variants import BenchmarkClip, labels_of_objects, make_clip

OLD, NEW = "old", "new"
_COMMAND = "import sys; from mpn.cli.main import main; sys.argv[0] = 'mpn'; sys.exit(main())"


@dataclass
class Release:
    """Describe one side and collect its times.

    Attributes:
        source: Folder that contains the package.
        engine_dir: Engine directory; None for that of the package.
        seconds: Seconds by figure and number of objects.
        report: run.json of the latest run.
    """

    source: Path
    engine_dir: Path | None
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def add(self, figure: str, objects: int, seconds: float) -> None:
        """Add one time."""
        self.seconds.setdefault((figure, objects), []).append(seconds)

    def run(
        self,
        video: Path,
        mask: Path,
        out: Path,
        cache: Path,
        *,
        threads: int,
        end: int | None = None,
        options: Sequence[str] = (),
    ) -> float:
        """Run the command line and return the seconds of its process.

        Args:
            video: The video.
            mask: Mask of its first frame.
            out: Folder for the results.
            cache: Folder of the user's cache.
            threads: Threads of the run.
            end: Frame to stop before; None for all.
            options: Further options of the command.

        Raises:
            InputError: If the command fails; the message has its last line.
        """
        command = [sys.executable, "-c", _COMMAND, "run", str(video), "--mask", str(mask)]
        command += ["-o", str(out), "--backend", "cpu", "--threads", str(threads), "--quiet"]
        command += [] if self.engine_dir is None else ["--engine-dir", str(self.engine_dir)]
        command += [] if end is None else ["--end", str(end)]
        command += options
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.source.resolve()),
            "XDG_CACHE_HOME": str(cache),
        }
        begun_s = perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = perf_counter() - begun_s
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise InputError(f"mpn run of {self.source} failed: {lines[-1]}")
        self.report = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return seconds

    def measure(self, clip: BenchmarkClip, mask: Path, objects: int, *, threads: int) -> None:
        """Run one frame with an empty cache, then the whole clip with its weights."""
        with tempfile.TemporaryDirectory(prefix="mpn-release-") as folder:
            root = Path(folder)
            cache = root / "cache"
            process_s = self.run(clip.video, mask, root / "first", cache, threads=threads, end=1)
            self.add("process", objects, process_s)
            self.add("first_mask", objects, self.report["wall_s"])
            self.run(clip.video, mask, root / "all", cache, threads=threads)
            self.add("wall", objects, 1 / self.report["fps_after_finetune"])


def add_release_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`releases_from`."""
    for name in (OLD, NEW):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="SRC")
        parser.add_argument(f"--{name}-engine-dir", type=Path, help="[that of the package]")


def releases_from(given: argparse.Namespace) -> dict[str, Release]:
    """Return both sides.

    Raises:
        InputError: If a folder has no package.
    """
    for source in (given.old, given.new):
        if not (source / "mpn" / "__init__.py").is_file():
            raise InputError(f"{source} has no package mpn: give the folder that contains it")
    return {
        OLD: Release(given.old, given.old_engine_dir),
        NEW: Release(given.new, given.new_engine_dir),
    }


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    releases = releases_from(given)
    counts = [int(number) for number in given.objects.split(",")]
    size_hw = frame_size_hw_from_text(given.frame_size)
    with tempfile.TemporaryDirectory(prefix="mpn-releases-") as folder:
        clip = make_clip(Path(folder), frames=given.frames, size_hw=size_hw)
        for repeat in range(given.repeats):
            for objects in counts:
                mask = Path(folder, f"{objects}.png")
                save_labels(mask, labels_of_objects(clip.labels, objects))
                sides = list(releases.items())
                for name, release in sides if repeat % 2 == 0 else sides[::-1]:
                    release.measure(clip, mask, objects, threads=given.threads)
                    first_s = release.seconds["first_mask", objects][-1]
                    fps = 1 / release.seconds["wall", objects][-1]
                    print(
                        f"{objects} objects, {name}: first mask {first_s:.2f} s, {fps:.1f} FPS",
                        file=sys.stderr,
                        flush=True,
                    )
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=None,
            frame_size_hw=size_hw,
            objects=counts,
            frames=given.frames,
            warmup=0,
            load_average_before=before,
            not_measured=["GPU (CUDA, TensorRT): the networks ran on the CPU"],
        ),
        "repeats": given.repeats,
        "releases": {name: release_facts(release) for name, release in releases.items()},
        "runs": [_figures(releases, objects) for objects in counts],
    }


def release_facts(release: Release) -> dict[str, Any]:
    """Return version and engine of the latest run."""
    report = release.report
    return {
        "version": report["versions"]["mpn-runtime"],
        "engine": {key: report["engine"][key] for key in ("name", "digests")},
        "is_finetuned": report["finetune"]["ran"],
    }


def _figures(releases: Mapping[str, Release], objects: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"objects": objects}
    for figure in ("first_mask", "wall", "process"):
        times = {
            name: summary_ms(release.seconds[figure, objects]) for name, release in releases.items()
        }
        of = {key: times[OLD][key] / times[NEW][key] for key in ("median_ms", "min_ms")}
        figures[figure] = {
            **times,
            "ratio": {
                "of_medians": round(of["median_ms"], 3),
                "of_minima": round(of["min_ms"], 3),
            },
        }
    return figures


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_release_arguments(parser)
    parser.add_argument("--objects", default="1,3,5", help="[%(default)s]")
    parser.add_argument("--frames", type=int, default=96, help="of the clip [%(default)s]")
    parser.add_argument("--frame-size", default="854x480", help="[%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("releases.json"))
    given = parser.parse_args()
    body = measured("releases", benchmark, given)
    if body is None:
        return 1
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

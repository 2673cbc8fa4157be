"""Compare first mask, wall FPS and peak memory of source trees.

    python -m benchmarks.speed.releases --old SRC --new SRC [--old-engine-dir DIR]
        [--new-engine-dir DIR] [--side NAME=SRC[,engines=DIR][,backend=NAME]]...
        [--objects 1,3,5,8] [--frames 96] [--repeats 7] [--first-masks N] [--threads 2]
        [-o FILE.json]

SRC is the folder that contains the package ``mpn`` of a release. Each figure comes from ``mpn run``
in a separate process, with the defaults of its release. The sides alternate, and the first one
changes in each repeat. All use the packages of this Python. ``--side`` adds sides, for example the
new tree with other engines.

``first_mask`` is the time from open engines to the written first mask: run.json of a run of one
frame, with an empty cache of fine-tuned weights. ``wall`` is the time per frame of the whole clip,
from decoding to written masks and overlay: run.json of a run that uses the cached weights.
``process`` is the time of the process of the first run, with its start and the opening of the
engines. ``ratio`` is old divided by each other side. ``memory`` is the peak resident memory of the
process of the whole clip.

A side that fine-tunes needs minutes until its first mask. ``--first-masks N`` measures that N times
and keeps the weights for the other repeats of ``wall``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
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
_SETTINGS = frozenset(("engines", "backend"))
_PEAK_VARIABLE = "MPN_RELEASES_PEAK"
_COMMAND = f"""
import os, sys
from mpn.cli.main import main
sys.argv[0] = "mpn"
try:
    sys.exit(main())
finally:
    with open("/proc/self/status") as status, open(os.environ["{_PEAK_VARIABLE}"], "w") as peak:
        peak.writelines(line for line in status if line.startswith("VmHWM:"))
"""
"""Runs the command line of any release, and writes the peak memory of its process."""


@dataclass
class Release:
    """Describe one side and collect its times.

    Attributes:
        source: Folder that contains the package.
        engine_dir: Engine directory; None for that of the package.
        backend: Backend of the runs.
        seconds: Seconds by figure and number of objects.
        peak_mib: Peak memory of the runs of the whole clip by number of objects.
        report: run.json of the latest run.
        is_finetuned: Whether the latest run of one frame fine-tuned.
    """

    source: Path
    engine_dir: Path | None = None
    backend: str = "cpu"
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    peak_mib: dict[int, list[float]] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    is_finetuned: bool = False
    _latest_peak_mib: float = 0.0

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
        command += ["-o", str(out), "--backend", self.backend, "--quiet"]
        command += ["--threads", str(threads)]
        command += [] if self.engine_dir is None else ["--engine-dir", str(self.engine_dir)]
        command += [] if end is None else ["--end", str(end)]
        command += options
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.source.resolve()),
            "XDG_CACHE_HOME": str(cache),
            _PEAK_VARIABLE: str(out) + ".peak",
        }
        begun_s = perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = perf_counter() - begun_s
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise InputError(f"mpn run of {self.source} failed: {lines[-1]}")
        self.report = json.loads((out / "run.json").read_text(encoding="utf-8"))
        peak = Path(environment[_PEAK_VARIABLE]).read_text(encoding="ascii")
        self._latest_peak_mib = int(peak.split()[1]) / 1024
        return seconds

    def measure(
        self,
        clip: BenchmarkClip,
        mask: Path,
        objects: int,
        *,
        threads: int,
        cache: Path,
        first_masks: int | None = None,
    ) -> None:
        """Run one frame with an empty cache, then the whole clip with its weights.

        Args:
            clip: The clip.
            mask: Mask of its first frame.
            objects: Number of objects in the mask.
            threads: Threads of the run.
            cache: Folder of the user's cache of this side and number of objects.
            first_masks: Most runs of one frame, if the release fine-tunes; None for one per call.
        """
        with tempfile.TemporaryDirectory(prefix="mpn-release-") as folder:
            root = Path(folder)
            measured_before = len(self.seconds.get(("first_mask", objects), ()))
            is_kept = first_masks is not None and measured_before >= first_masks
            if not (is_kept and self.is_finetuned):
                shutil.rmtree(cache, ignore_errors=True)
                process_s = self.run(
                    clip.video, mask, root / "first", cache, threads=threads, end=1
                )
                self.add("process", objects, process_s)
                self.add("first_mask", objects, self.report["wall_s"])
                self.is_finetuned = self.report["finetune"]["ran"]
            self.run(clip.video, mask, root / "all", cache, threads=threads)
            self.add("wall", objects, 1 / self.report["fps_after_finetune"])
            self.peak_mib.setdefault(objects, []).append(self._latest_peak_mib)


def add_release_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`releases_from`."""
    for name in (OLD, NEW):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="SRC")
        parser.add_argument(f"--{name}-engine-dir", type=Path, help="[that of the package]")


def releases_from(given: argparse.Namespace, sides: Sequence[str] = ()) -> dict[str, Release]:
    """Return all sides.

    Args:
        given: Arguments of :func:`add_release_arguments`.
        sides: Texts of further sides.

    Raises:
        InputError: If a folder has no package, or a text is not usable.
    """
    releases = {
        OLD: Release(given.old, given.old_engine_dir),
        NEW: Release(given.new, given.new_engine_dir),
    }
    for text in sides:
        name, release = _side_from_text(text)
        if name in releases:
            raise InputError(f"there are two sides named {name}")
        releases[name] = release
    for release in releases.values():
        if not (release.source / "mpn" / "__init__.py").is_file():
            raise InputError(
                f"{release.source} has no package mpn: give the folder that contains it"
            )
    return releases


def _side_from_text(text: str) -> tuple[str, Release]:
    name, _, rest = text.partition("=")
    source, *settings = rest.split(",")
    found = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    if not name or not source or len(found) != len(settings) or found.keys() - _SETTINGS:
        raise InputError(f"'{text}' is not NAME=SRC[,engines=DIR][,backend=NAME]")
    engines = Path(found["engines"]) if "engines" in found else None
    return name, Release(Path(source), engines, found.get("backend", "cpu"))


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    releases = releases_from(given, given.side)
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
                    release.measure(
                        clip,
                        mask,
                        objects,
                        threads=given.threads,
                        cache=Path(folder, f"cache-{name}-{objects}"),
                        first_masks=given.first_masks,
                    )
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
        "backend": release.backend,
    }


def _figures(releases: Mapping[str, Release], objects: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"objects": objects}
    for figure in ("first_mask", "wall", "process"):
        times = {
            name: summary_ms(release.seconds[figure, objects]) for name, release in releases.items()
        }
        figures[figure] = {
            **times,
            "ratio": {
                name: {
                    f"of_{plural}": round(times[OLD][key] / side[key], 3)
                    for plural, key in (("medians", "median_ms"), ("minima", "min_ms"))
                }
                for name, side in times.items()
                if name != OLD
            },
        }
    figures["memory"] = {}
    for name, release in releases.items():
        peaks_mib = release.peak_mib[objects]
        figures["memory"][name] = {
            "median_mib": round(statistics.median(peaks_mib), 1),
            "min_mib": round(min(peaks_mib), 1),
            "max_mib": round(max(peaks_mib), 1),
        }
    return figures


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_release_arguments(parser)
    parser.add_argument("--objects", default="1,3,5,8", help="[%(default)s]")
    parser.add_argument("--frames", type=int, default=96, help="of the clip [%(default)s]")
    parser.add_argument("--frame-size", default="854x480", help="[%(default)s]")
    parser.add_argument("--repeats", type=int, default=7, help="[%(default)s]")
    parser.add_argument(
        "--first-masks", type=int, metavar="N", help="of a side that fine-tunes [all repeats]"
    )
    parser.add_argument(
        "--side",
        action="append",
        default=[],
        metavar="NAME=SRC[,engines=DIR][,backend=NAME]",
        help="one more side",
    )
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

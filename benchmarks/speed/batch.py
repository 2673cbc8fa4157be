"""Compare ``mpn batch`` with a shell loop of ``mpn run`` over short clips.

    python -m benchmarks.speed.batch --davis-root DAVIS [--clips 24] [--frames 20] [--workers 2]
        [--repeats 3] [--kills 3] [--options="--fast"] [-o FILE.json]

The clips are the first frames of sequences of the sets ``val`` and ``train``. The loop runs one
process per clip, each with all cores, as a user would write it. The sides alternate, and the first
one changes in each repeat. ``wall`` is the time of all clips from the start of the first process to
the end of the last one. ``ratio`` is the loop divided by the batch. ``differing`` counts the masks
whose files are not the same bytes. Exits with 1 if there is one.

With ``--kills N`` another batch follows. N times a worker gets SIGKILL, then the batch itself, and
the same command runs again. ``killed`` has the clips that were done before the second command, how
often each clip was completed in both (``most_completions``), and the masks that differ.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn._common.cores import usable_cores
from mpn._common.files import visible_files
from mpn.errors import InputError
from mpn.evaluation import load_davis
from mpn.runtime.bench.result import check_result_path, load_average, summary_ms

LOOP, BATCH = "loop", "batch"
_SETS = ("val", "train")
_POLL_S = 0.05
_COMMAND = [sys.executable, "-c", "from mpn.cli.main import main; main()"]


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    options = given.options.split()
    seconds: dict[str, list[float]] = {LOOP: [], BATCH: []}
    with tempfile.TemporaryDirectory(prefix="mpn-batch-") as folder:
        root = Path(folder)
        clips = write_clips(root, given.davis_root, given.clips, given.frames)
        manifest = write_manifest(root, clips)
        run: dict[str, Callable[[Path], float]] = {
            LOOP: lambda out: run_loop(clips, out, options),
            BATCH: lambda out: run_batch(manifest, out, given.workers, options),
        }
        differing: dict[str, int] = dict.fromkeys(clips, 0)
        for repeat in range(given.repeats):
            outs = {side: root / f"{repeat}-{side}" for side in run}
            for side in [LOOP, BATCH] if repeat % 2 == 0 else [BATCH, LOOP]:
                seconds[side].append(run[side](outs[side]))
                print(f"{side}: {seconds[side][-1]:.1f} s", file=sys.stderr, flush=True)
            for name in clips:
                found = differing_masks(outs[LOOP] / name, outs[BATCH] / name, given.frames)
                differing[name] = max(differing[name], found)
        killed = None
        if given.kills:
            killed = run_killed(manifest, root / "killed", given.workers, options, given.kills)
            killed["differing"] = sum(
                differing_masks(outs[BATCH] / name, root / "killed" / name, given.frames)
                for name in clips
            )
            print(f"killed: {killed}", file=sys.stderr, flush=True)
        report = json.loads((outs[BATCH] / next(iter(clips)) / "run.json").read_text("utf-8"))
    wall: dict[str, Any] = {side: summary_ms(times) for side, times in seconds.items()}
    wall["ratio"] = {
        f"of_{plural}": round(wall[LOOP][key] / wall[BATCH][key], 3)
        for plural, key in (("medians", "median_ms"), ("minima", "min_ms"))
    }
    return {
        **result_header(
            backend=cpu_backend(usable_cores()),
            engine=None,
            frame_size_hw=report["video"]["size_hw"],
            objects=None,
            frames=given.frames * len(clips),
            warmup=0,
            load_average_before=before,
            not_measured=["GPU (CUDA, TensorRT): the networks ran on the CPU"],
        ),
        "clips": {name: {"frames": given.frames, "differing": differing[name]} for name in clips},
        "workers": given.workers,
        "options": given.options,
        "repeats": given.repeats,
        "release": {
            "version": report["versions"]["mpn-runtime"],
            "engine": {key: report["engine"][key] for key in ("name", "digests")},
        },
        **({} if killed is None else {"killed": killed}),
        "is_equal": not any(differing.values()) and not (killed and killed["differing"]),
        "wall": wall,
    }


def write_clips(root: Path, davis: Path, count: int, frames: int) -> dict[str, tuple[Path, Path]]:
    """Write folders with the first images of sequences, outside of a DAVIS tree.

    Returns:
        Folder and mask by name.

    Raises:
        InputError: If the data set has too few sequences of this length.
    """
    clips: dict[str, tuple[Path, Path]] = {}
    for name in _SETS:
        dataset = load_davis(davis, name)
        for sequence in dataset.sequences:
            images = visible_files(davis / "JPEGImages" / "480p" / sequence.name, "*.jpg")[:frames]
            if len(images) < frames or len(clips) == count:
                continue
            folder = root / "clips" / sequence.name
            folder.mkdir(parents=True)
            for path in images:
                (folder / path.name).symlink_to(path.resolve())
            clips[sequence.name] = folder, sequence.annotation_paths[0].resolve()
    if len(clips) < count:
        raise InputError(
            f"{davis} has {len(clips)} sequences of {frames} frames in {' and '.join(_SETS)}, "
            f"not {count}: give --clips {len(clips)}, or fewer --frames"
        )
    return clips


def write_manifest(root: Path, clips: Mapping[str, tuple[Path, Path]]) -> Path:
    """Write the manifest of the clips of :func:`write_clips`, and return its path."""
    path = root / "clips.csv"
    rows = [("video", "mask", "name"), *((*files, name) for name, files in clips.items())]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def run_loop(clips: Mapping[str, tuple[Path, Path]], out: Path, options: Sequence[str]) -> float:
    """Run ``mpn run`` on each clip from a shell, and return the seconds."""
    lines = ["set -e"]
    for name, (video, mask) in clips.items():
        command = [*_COMMAND, "run", str(video), "--mask", str(mask), "-o", str(out / name)]
        lines.append(shlex.join([*command, "--backend", "cpu", "--quiet", *options]))
    return _seconds_of(["sh", "-c", "\n".join(lines)])


def run_batch(manifest: Path, out: Path, workers: int, options: Sequence[str]) -> float:
    """Run ``mpn batch`` on all clips, and return the seconds."""
    return _seconds_of(_batch_command(manifest, out, workers, options))


def run_killed(
    manifest: Path, out: Path, workers: int, options: Sequence[str], kills: int
) -> dict[str, Any]:
    """Kill workers and the batch, run the same command again, and return the counts.

    A worker is killed after each clip that is done, so at least ``kills`` clips are.
    """
    command = _batch_command(manifest, out, workers, options)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        for done in range(kills + 1):
            while len(list(out.glob("*/done.json"))) <= done and first.poll() is None:
                time.sleep(_POLL_S)
            pids = children_of(first.pid)
            if done < kills and pids:
                os.kill(pids[done % len(pids)], signal.SIGKILL)
        first.kill()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(_POLL_S)
    before = len(list(out.glob("*/done.json")))
    _seconds_of(command)
    times_done = completed(out / "batch.jsonl")
    return {
        "workers_killed": kills,
        "done_before": before,
        "completed": len(list(out.glob("*/done.json"))),
        "most_completions": max(times_done.values()),
        "unfinished_files": len([*out.rglob("*partial*"), *out.rglob(".mpn*")]),
    }


def parents() -> dict[int, int]:
    """Return the parent of each process, from /proc."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:  # it has ended
                continue
            found[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    return found


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [child for child, parent in parents().items() if parent == pid]


def completed(log: Path) -> Counter[str]:
    """Count how often each video was completed, by the lines of batch.jsonl."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line]
    return Counter(
        line["name"] for line in lines if line["event"] == "video" and line["state"] == "done"
    )


def _batch_command(manifest: Path, out: Path, workers: int, options: Sequence[str]) -> list[str]:
    command = [*_COMMAND, "batch", str(manifest), "-o", str(out), "--workers", str(workers)]
    return [*command, "--backend", "cpu", "--quiet", *options]


def _seconds_of(command: Sequence[str]) -> float:
    begun_s = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = perf_counter() - begun_s
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"{command[0]} failed: {lines[-1]}")
    return seconds


def differing_masks(loop: Path, batch: Path, frames: int) -> int:
    """Count the masks whose files differ, or are missing on one side."""
    names = {path.name for out in (loop, batch) for path in (out / "masks").glob("*.png")}
    differing = 0
    for name in names:
        paths = [out / "masks" / name for out in (loop, batch)]
        is_same = all(path.is_file() for path in paths)
        differing += not (is_same and paths[0].read_bytes() == paths[1].read_bytes())
    return differing + max(frames - len(names), 0)


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`write_clips`."""
    parser.add_argument("--davis-root", type=Path, required=True, help="folder in DAVIS layout")
    parser.add_argument("--clips", type=int, default=24, help="[%(default)s]")
    parser.add_argument("--frames", type=int, default=20, help="of each clip [%(default)s]")


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser)
    parser.add_argument("--workers", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--kills", type=int, default=0, help="workers to kill [%(default)s]")
    parser.add_argument("--options", default="", help="of both sides, such as --fast")
    parser.add_argument("-o", "--out", type=Path, default=Path("batch.json"))
    given = parser.parse_args()
    body = measured("batch", benchmark, given)
    if body is None:
        return 1
    print(f"ratio of wall times: {body['wall']['ratio']}, masks equal: {body['is_equal']}")
    print(f"written: {given.out}")
    return 0 if body["is_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())

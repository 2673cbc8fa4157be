"""Compare ``mpn batch`` on Ray with local workers, and kill a node.

    python -m benchmarks.speed.batch_ray --davis-root DAVIS [--clips 24] [--frames 20]
        [--repeats 2] [--options="--fast"] [-o FILE.json]

The clips are the first frames of the sequences of val, then of train. The cluster is two nodes with
one CPU each on this machine (two raylets, and a head without CPUs); it runs before the clock does.
The local runner has two workers. The sides alternate, and the first one changes in each repeat.

In one more run on Ray all processes of a node are killed when a third of the clips is done.
``is_equal`` states whether all clips have a result, each was completed once by the log, and all
masks of all runs are the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report.schema import cpu_backend, measured, result_header
from benchmarks.speed.batch import (
    add_clip_arguments,
    completed,
    parents,
    write_clips,
    write_manifest,
)
from benchmarks.speed.same_masks import compared
from mpn.errors import EvaluationError
from mpn.runtime.bench.result import check_result_path, load_average, summary_ms

LOCAL, RAY = "local", "ray"
_NODES = 2
_OBJECT_STORE_BYTES = 80 << 20
"""The least of Ray; a batch stores nothing there."""
_POLL_S = 0.2


class Nodes:
    """A Ray cluster on this machine: a head without CPUs, nodes with one each.

    Args:
        count: Number of nodes.
    """

    def __init__(self, count: int = _NODES) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        size = {"object_store_memory": _OBJECT_STORE_BYTES}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size}
        )
        self._nodes = [self._cluster.add_node(num_cpus=1, **size) for _ in range(count)]
        self.address = str(self._cluster.address)

    def kill(self, index: int) -> int:
        """Kill all processes of a node at once, and return their number."""
        [raylet] = self._nodes[index].all_processes["raylet"]
        processes = descendants(raylet.process.pid)
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        return len(processes)

    def close(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Open a cluster of two nodes, and end it after the block."""
    before = signal.getsignal(signal.SIGTERM)
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()
        signal.signal(signal.SIGTERM, before)  # Ray has replaced it


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started."""
    parent_of = parents()
    found = [pid]
    for one in found:
        found += [child for child, parent in parent_of.items() if parent == one]
    return found


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    seconds: dict[str, list[float]] = {LOCAL: [], RAY: []}
    with tempfile.TemporaryDirectory(prefix="mpn-batch-") as folder:
        root = Path(folder)
        clips = write_clips(root, given.davis_root, given.clips, given.frames)
        manifest, names = write_manifest(root, clips), list(clips)
        outs: list[Path] = []
        with two_nodes() as nodes:
            for repeat in range(given.repeats):
                for side in (LOCAL, RAY) if repeat % 2 == 0 else (RAY, LOCAL):
                    outs.append(root / f"{repeat}-{side}")
                    began_s = time.perf_counter()
                    if _started(given, manifest, outs[-1], side, nodes).wait() != 0:
                        raise EvaluationError(f"mpn batch failed: {side}")
                    seconds[side].append(time.perf_counter() - began_s)
                    print(f"{side}: {seconds[side][-1]:.1f} s", file=sys.stderr, flush=True)
            outs.append(root / "killed")
            loss = _with_a_lost_node(given, manifest, outs[-1], nodes, len(names))
        counts = [compared(outs[0] / name / "masks", out / name / "masks")
                  for out in outs[1:] for name in names]  # fmt: skip
        times_done = completed(outs[-1] / "batch.jsonl")
    times = {side: summary_ms(seconds[side]) for side in seconds}
    ratio = {
        f"of_{plural}": round(times[RAY][key] / times[LOCAL][key], 3)
        for plural, key in (("medians", "median_ms"), ("minima", "min_ms"))
    }
    return {
        **result_header(
            backend=cpu_backend(1),
            engine=None,
            frame_size_hw=(480, 854),
            objects=None,
            frames=given.frames * len(names),
            warmup=0,
            load_average_before=before,
            not_measured=["GPU", "several machines: all nodes are processes of one"],
        ),
        "options": given.options,
        "data": {"clips": names, "frames_per_clip": given.frames},
        "repeats": given.repeats,
        "wall": {**times, "ratio": ratio},
        "loss": {**loss, "done": len(times_done), "most_often": max(times_done.values())},
        "differing": sum(one["differing"] for one in counts),
        "is_equal": sorted(times_done) == sorted(names)
        and set(times_done.values()) == {1}
        and not any(one["differing"] for one in counts),
    }


def _started(
    given: argparse.Namespace, manifest: Path, out: Path, side: str, nodes: Nodes
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mpn", "batch", str(manifest), "-o", str(out), "--quiet"]
    command += ["--workers", str(_NODES), "--threads", "1", *given.options.split()]
    if side == RAY:
        command += ["--runner", "ray", "--address", nodes.address]
    return subprocess.Popen(command)


def _with_a_lost_node(
    given: argparse.Namespace, manifest: Path, out: Path, nodes: Nodes, clips: int
) -> dict[str, Any]:
    """Run the batch, and kill a node when a third of the clips is done."""
    began_s = time.perf_counter()
    process = _started(given, manifest, out, RAY, nodes)
    while len(list(out.glob("*/done.json"))) < clips // 3 and process.poll() is None:
        time.sleep(_POLL_S)
    killed = nodes.kill(0)
    at_s = time.perf_counter() - began_s
    code = process.wait()
    return {
        "killed_processes": killed,
        "killed_at_s": round(at_s, 1),
        "wall_s": round(time.perf_counter() - began_s, 1),
        "exit_code": code,
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser)
    parser.add_argument("--options", default="", help="of mpn batch, such as --fast")
    parser.add_argument("--repeats", type=int, default=2, help="[%(default)s]")
    parser.add_argument("-o", "--out", type=Path, default=Path("batch_ray.json"))
    given = parser.parse_args()
    body = measured("batch_ray", benchmark, given)
    if body is None:
        return 1
    print(f"written: {given.out}")
    return 0 if body["is_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())

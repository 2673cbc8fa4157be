"""Measure wall FPS against the number of objects, frame size and length.

    python -m benchmarks.speed.scaling [--engine-dir NAME=DIR[,backend=NAME]]... [--only k,size]
        [--objects 1,2,3,5,8,12,16] [--sizes 240p,...,2160p] [--lengths 100,1000,10000]
        [--frames 40] [--repeats 3] [--threads 2] [-o FILE.json]

Each figure is that of a default ``mpn run`` in a separate process, from an H.264 file to written
masks, overlay and review page. The built-in clip is rendered once, played forwards and backwards,
and scaled to each size. The engine directories alternate, and the first one changes in each repeat.

* ``k``: frames of 854x480 with K objects.
* ``size``: frames of 16:9 with one object. The fit is over the megapixels of a frame.
* ``length``: frames of 426x240 with one object, the first engine directory only, one run for each
  length. The small size keeps 10,000 frames within minutes.

``per_frame`` is 1 / wall FPS without the warm-up, with the time that the writers need after the
last frame. The fits are least squares: of ``per_frame`` (medians), of the median of each stage, and
for ``length`` of the time of the whole run. ``stages`` and the tenths are those of the fastest run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.report.schema import cpu_backend, measured, result_header
from benchmarks.speed.memory import forwards_and_backwards
from mpn.engines.open import BACKENDS, Backend, default_engine_dir, open_engines
from mpn.errors import InputError
from mpn.export.options import frame_size_hw_from_text
from mpn.masks import save_labels
from mpn.runtime.bench.figures import WallRun, run_wall_apart
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average, summary_ms
from mpn.runtime.bench.variants import labels_of_objects
from mpn.runtime.session.request import RunRequest
from mpn.synthetic import CLIP_FPS, SyntheticFrame, render_clip

K, SIZE, LENGTH = SWEEPS = ("k", "size", "length")
_RENDERED_HEIGHT_MAX = 1080
"""Rendering a 2160p frame takes seconds; larger frames are scaled up."""
_VIDEO_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "18"}}


@dataclass(frozen=True)
class Side:
    """An engine directory and its backend."""

    engine_dir: Path
    backend: Backend = "cpu"


@dataclass(frozen=True)
class Point:
    """One place of a sweep.

    Attributes:
        name: Name in the result.
        x: Place on the axis: objects, megapixels or frames.
        size_hw: (height, width) of the frames.
        objects: Number of objects.
        frames: Frames of the video.
    """

    name: str
    x: float
    size_hw: tuple[int, int]
    objects: int
    frames: int


def side_from_text(text: str) -> tuple[str, Side]:
    """Read ``NAME=DIR`` or ``NAME=DIR,backend=NAME``.

    Raises:
        InputError: If the text has another form.
    """
    name, _, rest = text.partition("=")
    path, _, backend = rest.partition(",backend=")
    backend = backend or "cpu"
    if not name or not path or backend not in BACKENDS:
        raise InputError(
            f"'{text}' is not NAME=DIR or NAME=DIR,backend=NAME with a backend of "
            f"{', '.join(BACKENDS)}"
        )
    return name, Side(Path(path), cast("Backend", backend))


def size_hw_from_height(text: str) -> tuple[int, int]:
    """Return the (height, width) of 16:9 for a text such as ``480p``.

    The width is even.

    Raises:
        InputError: If the text is no even height followed by ``p``.
    """
    if not text.endswith("p") or not text[:-1].isdecimal() or int(text[:-1]) % 2:
        raise InputError(f"a size must be an even height such as 480p, got '{text}'")
    height = int(text[:-1])
    return height, 2 * round(height * 8 / 9)


def points_from(given: argparse.Namespace) -> dict[str, list[Point]]:
    """Return the points of each requested sweep.

    Raises:
        InputError: If a name or number is not usable, or a video has too few frames.
    """
    names = given.only.split(",")
    if not set(names) <= set(SWEEPS):
        raise InputError(f"--only takes {', '.join(SWEEPS)}, got '{given.only}'")
    frames, k_hw = given.frames, frame_size_hw_from_text(given.frame_size)
    points: dict[str, list[Point]] = {}
    if K in names:
        counts = [int(number) for number in given.objects.split(",")]
        points[K] = [Point(f"K = {k}", k, k_hw, k, frames) for k in counts]
    if SIZE in names:
        sizes = [size_hw_from_height(text) for text in given.sizes.split(",")]
        points[SIZE] = [Point(f"{w}x{h}", w * h / 1e6, (h, w), 1, frames) for h, w in sizes]
    if LENGTH in names:
        length_hw = size_hw_from_height(given.length_size)
        lengths = [int(number) for number in given.lengths.split(",")]
        points[LENGTH] = [Point(f"{n} frames", n, length_hw, 1, n) for n in lengths]
    fewest = min(point.frames for sweep in points.values() for point in sweep)
    if fewest < given.warmup + 3:
        raise InputError(f"{fewest} frames are too few for {given.warmup} frames of warm-up")
    return points


def scaled(clip: Sequence[SyntheticFrame], size_hw: tuple[int, int]) -> list[SyntheticFrame]:
    """Scale the frames of a clip and their labels."""
    import cv2

    height, width = size_hw
    is_smaller = height < clip[0].rgb.shape[0]
    kernel = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
    return [
        SyntheticFrame(
            np.asarray(cv2.resize(frame.rgb, (width, height), interpolation=kernel), np.uint8),
            np.asarray(
                cv2.resize(frame.labels, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
            ),
        )
        for frame in clip
    ]


def write_video(path: Path, clip: list[SyntheticFrame], frames: int) -> None:
    """Write the clip, forwards and backwards, as H.264 in an MP4."""
    import av

    from mpn._common.h264 import h264_encoder

    encoder = h264_encoder()
    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream: Any = container.add_stream(
            encoder, rate=CLIP_FPS, options=_VIDEO_OPTIONS.get(encoder, {"b": "16000000"})
        )
        stream.height, stream.width = clip[0].labels.shape
        stream.pix_fmt = "yuv420p"
        for rgb in forwards_and_backwards(clip, frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))


class Videos:
    """Write the video and the mask of each point once.

    Args:
        folder: Folder for the files.
        clip: Rendered frames.
    """

    def __init__(self, folder: Path, clip: Sequence[SyntheticFrame]) -> None:
        self._folder = folder
        self._clip = clip

    def of(self, point: Point) -> tuple[Path, Path]:
        """Return the video and the first mask of a point."""
        height, width = point.size_hw
        video = self._folder / f"{width}x{height}-{point.frames}.mp4"
        mask = self._folder / f"{width}x{height}-{point.objects}.png"
        if not video.exists() or not mask.exists():
            clip = scaled(self._clip, point.size_hw)
            save_labels(mask, labels_of_objects(clip[0].labels, point.objects))
            if not video.exists():
                write_video(video, clip, point.frames)
        return video, mask


def line_fit(xs: Sequence[float], ys_ms: Sequence[float]) -> dict[str, float] | None:
    """Fit ``y = fixed + slope x`` by least squares.

    Returns:
        ``fixed_ms``, ``slope_ms`` (per unit of x), ``residual_ms`` (root mean square) and
        ``residual_max_ms``; None for fewer than two places.
    """
    if len(set(xs)) < 2:
        return None
    slope, fixed = np.polyfit(xs, ys_ms, 1)
    residuals = np.array(ys_ms) - (fixed + slope * np.array(xs))
    return {
        "fixed_ms": round(float(fixed), 3),
        "slope_ms": round(float(slope), 4),
        "residual_ms": round(float(np.sqrt(np.mean(residuals**2))), 3),
        "residual_max_ms": round(float(np.abs(residuals).max()), 3),
    }


def point_figures(point: Point, runs: Sequence[WallRun], *, warmup: int) -> dict[str, Any]:
    """Summarise the runs of one point."""
    walls = [run.as_json(warmup=warmup) for run in runs]
    fastest = max(range(len(runs)), key=lambda index: walls[index]["fps"])
    per_frame = summary_ms(1 / wall["fps"] for wall in walls)
    done_s = runs[fastest].done_s[warmup:]
    tenth = max((len(done_s) - 1) // 10, 1)
    peaks = [run.peak_memory_mib for run in runs if run.peak_memory_mib is not None]
    return {
        "name": point.name,
        "x": round(point.x, 4),
        "objects": point.objects,
        "frame_size_hw": list(point.size_hw),
        "frames": point.frames,
        "fps": round(1e3 / per_frame["median_ms"], 3),
        "per_frame": per_frame,
        "whole_run": summary_ms(run.total_s for run in runs),
        "first_mask": summary_ms(run.done_s[0] for run in runs),
        "stages": {name: times["median_ms"] for name, times in walls[fastest]["stages"].items()},
        "first_tenth_ms": round((done_s[tenth] - done_s[0]) / tenth * 1e3, 3),
        "last_tenth_ms": round((done_s[-1] - done_s[-1 - tenth]) / tenth * 1e3, 3),
        "peak_memory_mib": max(peaks, default=None),
    }


def sweep_figures(sweep: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the points of one engine directory with their fits."""
    xs = [point["x"] for point in points]
    key = "whole_run" if sweep == LENGTH else "per_frame"
    figures: dict[str, Any] = {
        "points": list(points),
        "fit": line_fit(xs, [point[key]["median_ms"] for point in points]),
        "stage_fits": {},
        "memory_slope_mib": None,
    }
    for name in dict.fromkeys(name for point in points for name in point["stages"]):
        found = [(point["x"], point["stages"][name]) for point in points if name in point["stages"]]
        figures["stage_fits"][name] = line_fit(*zip(*found, strict=True))
    peaks = [point["peak_memory_mib"] for point in points]
    if None not in peaks and len(set(xs)) > 1:
        figures["memory_slope_mib"] = round(float(np.polyfit(xs, peaks, 1)[0]), 5)
    return figures


def runs_of(
    sweep: str,
    points: Sequence[Point],
    sides: Mapping[str, Side],
    videos: Videos,
    folder: Path,
    given: argparse.Namespace,
) -> Iterator[tuple[str, Point, WallRun]]:
    """Run a sweep; the sides alternate at each point."""
    for repeat in range(1 if sweep == LENGTH else given.repeats):
        for point in points:
            video, mask = videos.of(point)
            order = list(sides)[:1] if sweep == LENGTH else list(sides)
            for name in order if repeat % 2 == 0 else order[::-1]:
                out = folder / "out"
                run = run_wall_apart(
                    RunRequest(
                        video=str(video),
                        masks={None: mask},
                        out=out,
                        engine_dir=sides[name].engine_dir,
                        backend=sides[name].backend,
                        threads=given.threads,
                        review=True,
                    )
                )
                shutil.rmtree(out, ignore_errors=True)
                fps = run.as_json(warmup=given.warmup)["fps"]
                print(
                    f"{sweep}: {point.name}, {name}: {fps:.1f} FPS, {run.peak_memory_mib} MiB",
                    file=sys.stderr,
                    flush=True,
                )
                yield name, point, run


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    texts = given.engine_dir or [f"default={default_engine_dir()}"]
    sides = dict(side_from_text(text) for text in texts)
    sweeps = points_from(given)
    facts = {}
    for name, side in sides.items():
        with open_engines(side.engine_dir, backend=side.backend, threads=given.threads) as engines:
            facts[name] = {**engine_facts(engines), "backend": engines.backend}
    largest = max(point.size_hw for points in sweeps.values() for point in points)
    rendered_hw = min(largest, size_hw_from_height(f"{_RENDERED_HEIGHT_MAX}p"))
    clip = list(render_clip(frames=given.clip_frames, size_hw=rendered_hw))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mpn-scaling-") as folder:
        videos = Videos(Path(folder), clip)
        for sweep, points in sweeps.items():
            runs: dict[tuple[str, str], list[WallRun]] = {}
            for name, point, run in runs_of(sweep, points, sides, videos, Path(folder), given):
                runs.setdefault((name, point.name), []).append(run)
            figures[sweep] = {
                name: sweep_figures(
                    sweep,
                    [
                        point_figures(point, runs[name, point.name], warmup=given.warmup)
                        for point in points
                    ],
                )
                for name in dict.fromkeys(name for name, _ in runs)
            }
    first = next(iter(facts))
    return {
        **result_header(
            backend={**cpu_backend(given.threads), "used": facts[first]["backend"]},
            engine=facts[first],
            frame_size_hw=frame_size_hw_from_text(given.frame_size),
            objects=[point.objects for point in sweeps.get(K, [])] or [1],
            frames=given.frames,
            warmup=given.warmup,
            load_average_before=before,
            not_measured=["GPU (CUDA, TensorRT): the networks ran on the CPU"],
        ),
        "repeats": given.repeats,
        "engines": facts,
        "sweeps": figures,
    }


def fit_text(fit: Mapping[str, float], unit: str) -> str:
    """Return a fit as one line."""
    return (
        f"{fit['fixed_ms']:.1f} ms + {fit['slope_ms']:.3g} ms per {unit} "
        f"(residual {fit['residual_ms']:.2f} ms, at most {fit['residual_max_ms']:.2f} ms)"
    )


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engine-dir", action="append", metavar="NAME=DIR[,backend=NAME]", help="[the default]"
    )
    parser.add_argument("--only", default=",".join(SWEEPS), help="[%(default)s]")
    parser.add_argument("--objects", default="1,2,3,5,8,12,16", help="[%(default)s]")
    parser.add_argument("--frame-size", default="854x480", help="of k [%(default)s]")
    parser.add_argument("--sizes", default="240p,360p,480p,720p,1080p,2160p", help="[%(default)s]")
    parser.add_argument("--lengths", default="100,1000,10000", help="frames [%(default)s]")
    parser.add_argument("--length-size", default="240p", help="[%(default)s]")
    parser.add_argument("--frames", type=int, default=40, help="of k and size [%(default)s]")
    parser.add_argument("--clip-frames", type=int, default=24, help="rendered [%(default)s]")
    parser.add_argument("--warmup", type=int, default=4, help="frames left out [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="of k and size [%(default)s]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("scaling.json"))
    given = parser.parse_args()
    body = measured("scaling", benchmark, given)
    if body is None:
        return 1
    units = {K: "object", SIZE: "megapixel", LENGTH: "frame"}
    for sweep, sides in body["sweeps"].items():
        for name, figures in sides.items():
            if figures["fit"] is not None:
                print(f"{sweep}, {name}: {fit_text(figures['fit'], units[sweep])}")
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

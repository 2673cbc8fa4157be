"""Measure J against time for sizes, depths and intervals of the features.

    python -m benchmarks.accuracy.features IMAGENET.pth --davis-root DAVIS [--set train]
        [--sequences A,B] [--engine-dir DIR] [--sizes 513x289,673x385,865x481] [--strides 16,32]
        [--every 1,2,3,4] [--precision fp16] [--sparse-truth] [--threads 2] [-o FILE.json]

For each size and output stride the features network is exported from the ImageNet file into a copy
of the engine directory, which has all other engines. The target model then runs it every N frames.
``features`` is the time of the engine alone, ``frame`` that of all stages of a frame. The
combinations are interleaved, sequence by sequence.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.accuracy.ablations import is_target_used
from benchmarks.accuracy.davis import Measured, run_sequence
from benchmarks.accuracy.sequences import (
    add_data_arguments,
    add_sparse_argument,
    data_facts,
    dataset_from_arguments,
    segment_frames,
)
from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn import Pipeline, PipelineOptions
from mpn._common.files import sha256_of_file
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import load_manifest, save_manifest
from mpn.engines.directory.parity import PARITY_NAME
from mpn.engines.open import default_engine_dir, open_engines
from mpn.engines.spec import Precision
from mpn.errors import CheckpointError, InputError
from mpn.evaluation.scores import DatasetScore, json_from_score
from mpn.export.description import role_entry, spec_of
from mpn.export.graph import export_graph
from mpn.export.options import ExportOptions, frame_size_hw_from_text
from mpn.export.staging import FinishedRole
from mpn.export.summary import role_summary
from mpn.networks.build import RoleWeights, build_network
from mpn.networks.checkpoint import read_torch_file
from mpn.networks.features import FeaturesConfig, features_variant
from mpn.networks.imagenet import features_weights, imagenet_trunk
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average, summary_ms


@dataclass
class Setting:
    """Describe one combination and collect its figures.

    Attributes:
        size_hw: (height, width) of the features engine.
        output_stride: Stride of its deepest map.
        every: Interval of the target model in frames.
        measured: Scores and times.
    """

    size_hw: tuple[int, int]
    output_stride: int
    every: int
    measured: Measured = field(default_factory=Measured)

    @property
    def name(self) -> str:
        """Name for tables."""
        height, width = self.size_hw
        return f"{width}x{height}, stride {self.output_stride}, every {self.every}"


def weights_of(state: Mapping[str, Any], output_stride: int, path: Path) -> RoleWeights:
    """Return the weights of a features network of an ImageNet file.

    Raises:
        CheckpointError: If the file is no ImageNet network that we have.
    """
    trunk = imagenet_trunk(state)
    if trunk is None:
        raise CheckpointError(f"{path} is no file of an ImageNet network")
    config = asdict(FeaturesConfig(trunk, output_stride))  # type: ignore[arg-type]
    weights = features_weights(state, config)
    return RoleWeights("features", features_variant(config), config, weights)


def write_directory(
    source: Path,
    target: Path,
    weights: RoleWeights,
    *,
    size_hw: tuple[int, int],
    precision: Precision,
) -> None:
    """Copy an engine directory and replace its features engine, unverified."""
    shutil.copytree(source, target)
    (target / PARITY_NAME).unlink(missing_ok=True)
    options = ExportOptions(features_size_hw=size_hw, precision=precision)
    network = build_network(weights)
    spec = spec_of("features", options, weights.config)
    graph = export_graph(network, spec, target / "features.onnx", precision=precision)
    names = (graph.path.name, *graph.external_data)
    finished = FinishedRole(
        tuple(FileDigest(name, sha256_of_file(target / name)) for name in names),
        {"summary": asdict(role_summary(weights, network, graph, None)), "adapt": None},
    )
    entry = role_entry(weights, options, finished)
    manifest = load_manifest(target)
    save_manifest(target, replace(manifest, roles={**manifest.roles, "features": entry}))


def engine_seconds(directory: Path, *, threads: int, runs: int) -> Iterator[float]:
    """Yield the seconds of the features engine alone, after one run to warm up."""
    with open_engines(directory, backend="cpu", threads=threads, with_osvos=False) as engines:
        assert engines.features is not None
        shape = engines.features.spec.inputs[0].shape
        image = np.full(shape, 128, np.float32)
        for run in range(runs + 1):
            begun_s = perf_counter()
            engines.features.run({"image": image})
            if run:
                yield perf_counter() - begun_s


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    dataset, images = dataset_from_arguments(given)
    source = given.engine_dir or default_engine_dir()
    sizes = [frame_size_hw_from_text(text) for text in given.sizes.split(",")]
    strides, intervals = _numbers(given.strides), _numbers(given.every)
    state = read_torch_file(given.imagenet)
    settings = [Setting(*values) for values in product(sizes, strides, intervals)]
    engine_times: dict[tuple[tuple[int, int], int], dict[str, float]] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mpn-features-")))
        pipelines = []
        for setting in settings:
            shape = (setting.size_hw, setting.output_stride)
            folder = root / f"{shape[0][1]}x{shape[0][0]}-{shape[1]}"
            if shape not in engine_times:
                weights = weights_of(state, setting.output_stride, given.imagenet)
                write_directory(
                    source, folder, weights, size_hw=shape[0], precision=given.precision
                )
                if not is_target_used(load_manifest(folder)):
                    raise InputError(f"the manifest of {source} disables the target model")
                seconds = engine_seconds(folder, threads=given.threads, runs=given.runs)
                engine_times[shape] = summary_ms(seconds)
            options = PipelineOptions().with_values({"target.every": setting.every})
            pipelines.append(
                stack.enter_context(
                    Pipeline.from_engines(
                        folder, backend="cpu", threads=given.threads, options=options
                    )
                )
            )
        engine = engine_facts(pipelines[0].engines)
        for pipeline in pipelines:
            first = dataset.sequences[0]
            for _ in segment_frames(
                pipeline, first, images, frames=given.warmup + 1, is_sparse=given.sparse_truth
            ):
                pass
        for sequence in dataset.sequences:
            for setting, pipeline in zip(settings, pipelines, strict=True):
                run_sequence(
                    pipeline,
                    sequence,
                    images,
                    None,
                    setting.measured,
                    is_sparse=given.sparse_truth,
                )
                score = setting.measured.scores[-1]
                j = ", ".join(f"{k.region.mean:.3f}" for k in score.objects)
                print(f"{setting.name:34} {sequence.name:20} J {j}", file=sys.stderr, flush=True)
    facts = data_facts(dataset, images, is_sparse=given.sparse_truth)
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engine,
            frame_size_hw=facts["frame_size_hw"],
            objects=facts["objects"],
            frames=sum(of["frames"] - 1 for of in facts["data"]["sequences"].values()),
            warmup=given.warmup,
            load_average_before=before,
            not_measured=["GPU (CUDA, TensorRT): the networks ran on the CPU"],
        ),
        "data": facts["data"],
        "precision": given.precision,
        "results": [
            _figures(setting, engine_times[setting.size_hw, setting.output_stride], given.set)
            for setting in settings
        ],
    }


def _figures(setting: Setting, engine_ms: dict[str, float], set_name: str) -> dict[str, Any]:
    scores = json_from_score(DatasetScore(set_name, tuple(setting.measured.scores)))
    return {
        "name": setting.name,
        "size_hw": list(setting.size_hw),
        "output_stride": setting.output_stride,
        "every": setting.every,
        **scores["global"],
        "scores": scores["objects"],
        "features": engine_ms,
        "frame": summary_ms(setting.measured.stages_s),
        "frame_mean_ms": round(float(np.mean(setting.measured.stages_s)) * 1e3, 3),
    }


def _numbers(text: str) -> Sequence[int]:
    return [int(number) for number in text.split(",")]


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("imagenet", type=Path, metavar="IMAGENET.pth")
    add_data_arguments(parser, default_set="train")
    add_sparse_argument(parser)
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument(
        "--sizes",
        default="513x289,673x385,865x481",
        help="WIDTHxHEIGHT of the engine [%(default)s]",
    )
    parser.add_argument("--strides", default="16,32", help="of the deepest map [%(default)s]")
    parser.add_argument("--every", default="1,2,3,4", help="frames [%(default)s]")
    parser.add_argument("--precision", default="fp16", choices=("fp32", "fp16"))
    parser.add_argument("--runs", type=int, default=20, help="of the engine alone [%(default)s]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=2, help="uncounted frames [%(default)s]")
    parser.add_argument("-o", "--out", type=Path, default=Path("features.json"))
    given = parser.parse_args()
    body = measured("features", benchmark, given)
    if body is None:
        return 1
    for row in body["results"]:
        print(
            f"{row['name']:34} J {row['J-Mean']:.4f}  engine {row['features']['median_ms']:.1f} ms"
            f"  frame {row['frame_mean_ms']:.1f} ms"
        )
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write an engine directory with int8 engines, if their masks pass the gate.

The float32 engines segment a split that the user gives. Their inputs calibrate the quantisation,
and their masks are the reference of the gate, which runs the quantised engines in the same way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import onnx

from mpn import __version__
from mpn._common.files import output_errors, sha256_of_file, write_text_atomically
from mpn._common.locks import FolderLock, TemporaryFolder
from mpn._common.records import read_json
from mpn._common.validation import check_int
from mpn.engines.directory.entries import QuantizedEntry, RoleEntry, utc_now_iso
from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.manifest import (
    Manifest,
    load_manifest,
    save_manifest,
    verify_digests,
)
from mpn.engines.directory.parity import PARITY_NAME
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.open import local_engine_dir
from mpn.engines.spec import Role
from mpn.errors import ExportError, InputError, ManifestError
from mpn.evaluation import load_davis
from mpn.export.staging import Staging, check_target
from mpn.quantization.gate import Comparison, InputSample, SequenceMasks, Split, compared
from mpn.quantization.graph import GraphQuantizer, Inputs, QuantizedGraph

QUANTIZABLE_ROLES: tuple[Role, ...] = ("propagation", "osvos", "features")
"""Flow has operators whose coordinates need float32."""

LARGEST_ERRORS: Mapping[Role, float] = {"propagation": 0.0075, "osvos": 0.0075, "features": 0.1}
"""Relative error of the outputs up to which layers are quantised at first. With more, the target
model of the lite engines still follows its object: the masks decide, not this number."""

_ROUNDS = 3
"""If the gate refuses, the errors are halved, so that more layers stay in float32."""
_SAMPLE = 48
_TIMED_RUNS = 7


@dataclass(frozen=True)
class QuantizationOptions:
    """Options of a quantisation.

    Attributes:
        davis_root: Annotated videos in DAVIS layout, like those in use, never
            those of a final test.
        set_name: List in ``ImageSets/2017``, without ``.txt``.
        frames: Frames of each sequence, at least 3.
        roles: Roles to quantise; None for all that the pipeline runs.
        name: Name of the directory; None for that of the folder.
        command: Command line for the manifest.
    """

    davis_root: Path
    set_name: str = "train"
    frames: int = 40
    roles: tuple[Role, ...] | None = None
    name: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        check_int("frames", self.frames, least=3)
        for role in self.roles or ():
            if role not in QUANTIZABLE_ROLES:
                raise InputError(
                    f"role '{role}' cannot be quantised: those that can are "
                    f"{', '.join(QUANTIZABLE_ROLES)}"
                )


@dataclass(frozen=True)
class QuantizedRole:
    """Result for one role.

    Attributes:
        role: The role.
        graph: Its quantised graph.
        float_ms: CPU time of one run in float32 on one thread, the least of several.
        int8_ms: The same, quantised.
    """

    role: Role
    graph: QuantizedGraph
    float_ms: float
    int8_ms: float

    def __str__(self) -> str:
        kept = (
            f" (float32: {', '.join(self.graph.float_layers)})" if self.graph.float_layers else ""
        )
        return (
            f"{self.role}: {self.graph.operators} of {self.graph.total_operators} convolutions "
            f"int8{kept}, {self.float_ms:.1f} -> {self.int8_ms:.1f} ms CPU time on one thread"
        )


@dataclass(frozen=True)
class QuantizedDirectory:
    """Result of a quantisation.

    Attributes:
        directory: The engine directory.
        manifest: Its manifest.
        roles: The quantised roles.
        comparison: The passed comparison.
    """

    directory: Path
    manifest: Manifest
    roles: tuple[QuantizedRole, ...]
    comparison: Comparison

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line per role that is not faster."""
        return tuple(
            f"the int8 {role.role} engine is not faster on this machine ({role.float_ms:.1f} ms in "
            f"float32, {role.int8_ms:.1f} ms in int8)"
            for role in self.roles
            if role.int8_ms >= role.float_ms
        )


def quantize_directory(
    source: str | os.PathLike[str],
    out: Path,
    options: QuantizationOptions,
    on_progress: Callable[[str], None] = lambda text: None,
) -> QuantizedDirectory:
    """Write a quantised copy of an engine directory, or nothing.

    A quantised role has no fine-tuning step: weights of the user cannot be exchanged in it. Other
    roles are copied.

    Args:
        source: Engine directory in float32 or half precision, see
            :mod:`mpn.engines.directory.locate`.
        out: The new directory; created, or replaced if it is empty or another engine directory.
        options: See :class:`QuantizationOptions`.
        on_progress: Called with one line per step.

    Raises:
        EvaluationError: If the split cannot be used.
        ExportError: If the gate refuses, or nothing can be quantised.
        InputError: If an image of the split cannot be read, or a role is not there.
        ManifestError: If the source cannot be used.
        OutputError: If the directory cannot be written.
    """
    directory = local_engine_dir(source).resolve()
    manifest = load_manifest(directory)
    verify_digests(directory, manifest, with_adapt=True)
    manifest.check_is_float("this step, which starts from float32,")
    target = check_target(out)
    if target == directory:
        raise InputError(f"{out} is the engine directory itself: give another folder with -o")
    for role in options.roles or ():
        if role not in manifest.roles:
            raise InputError(f"the engine directory has no role '{role}'")
    dataset = load_davis(options.davis_root, options.set_name)
    images = options.davis_root / "JPEGImages" / "480p"
    split = Split(dataset, images, options.frames)
    lock_file = target.with_name(f".{target.name}.mpn-export.lock")
    with FolderLock(target.parent, lock_file=lock_file, subject=target), TemporaryFolder() as work:
        samples = {
            role: InputSample(_SAMPLE)
            for role in options.roles or QUANTIZABLE_ROLES
            if role in manifest.roles
        }
        split.on_sequence = lambda name: on_progress(f"{name}: masks of the given engines")
        reference = split.run(directory, samples)
        quantizers = {}
        for role, sample in samples.items():
            if sample.inputs:
                on_progress(f"{role}: ranges of {len(sample.inputs)} inputs")
                path = resolve_inside(directory, manifest.roles[role].onnx)
                quantizers[role] = GraphQuantizer(path, sample.inputs, work.path)
            elif options.roles is not None:
                raise ExportError(f"{role} cannot be quantised: the pipeline does not run it")
        if not quantizers:
            raise ExportError(
                "nothing can be quantised: the pipeline runs no network on this split"
            )
        staging = Staging.open(target, {"int8": True})
        try:
            split.on_sequence = lambda name: on_progress(f"{name}: masks of the int8 engines")
            graphs, comparison = _passed(
                manifest, quantizers, directory, staging.path, split, reference
            )
            roles = tuple(
                _timed(role, graph, directory, manifest, staging.path, samples[role].inputs[0])
                for role, graph in graphs.items()
            )
            final = _manifest(
                replace(manifest, name=options.name or target.name),
                staging.path,
                graphs,
                comparison,
                split.description,
                options.command,
            )
            _write_parity(directory, staging.path, graphs.keys())
            save_manifest(staging.path, final)
            verify_digests(staging.path, final, with_adapt=True)
        except BaseException:  # Ctrl-C included
            staging.discard()
            raise
        staging.publish()
    return QuantizedDirectory(target, final, roles, comparison)


def _passed(
    manifest: Manifest,
    quantizers: Mapping[Role, GraphQuantizer],
    directory: Path,
    folder: Path,
    split: Split,
    reference: tuple[SequenceMasks, ...],
) -> tuple[dict[Role, QuantizedGraph], Comparison]:
    """Write quantised engines, with fewer int8 layers until the gate passes.

    Raises:
        ExportError: If it does not pass.
    """
    tried: list[dict[Role, tuple[str, ...]]] = []
    for halvings in range(_ROUNDS):
        graphs = {
            role: quantizer.quantize(LARGEST_ERRORS[role] / 2**halvings)
            for role, quantizer in quantizers.items()
        }
        kept = {role: graph.float_layers for role, graph in graphs.items()}
        if kept in tried:
            break
        tried.append(kept)
        _write_engines(manifest, graphs, directory, folder)
        # The figures of the manifest are not known yet.
        save_manifest(folder, _manifest(manifest, folder, graphs, None, split.description))
        comparison = compared(reference, split.run(folder))
        if comparison.passes:
            return graphs, comparison
    layers = "; ".join(
        f"{role} {graph.operators} of {graph.total_operators} convolutions"
        for role, graph in graphs.items()
    )
    raise ExportError(
        f"int8 engines are refused, and nothing is written: {comparison}; quantised were {layers}: "
        "keep the given engines, or quantise fewer --roles"
    )


def _write_engines(
    manifest: Manifest, graphs: Mapping[Role, QuantizedGraph], directory: Path, folder: Path
) -> None:
    for role, entry in manifest.roles.items():
        target = folder / entry.onnx
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if role in graphs:
                onnx.save(graphs[role].model, target)
                continue
            for file in entry.all_files:
                copy = folder / file.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(resolve_inside(directory, file.path), copy)


def _manifest(
    manifest: Manifest,
    folder: Path,
    graphs: Mapping[Role, QuantizedGraph],
    comparison: Comparison | None,
    compared_on: str,
    command: str = "",
) -> Manifest:
    """Return the new manifest; its figures are 0 without a comparison."""
    roles: dict[Role, RoleEntry] = dict(manifest.roles)
    for role, graph in graphs.items():
        roles[role] = replace(
            roles[role],
            sha256=sha256_of_file(folder / roles[role].onnx),
            external_data=(),
            precision="int8",
            half_weights=0,
            adapt=None,
            quantized=QuantizedEntry(
                operators=graph.operators,
                total_operators=graph.total_operators,
                float_layers=graph.float_layers,
                compared_on=compared_on,
                j_drop_points=0.0 if comparison is None else comparison.j_drop_points,
                mask_iou=0.0 if comparison is None else comparison.mask_iou,
            ),
        )
    provenance = replace(
        manifest.provenance, tool_version=__version__, command=command, created=utc_now_iso()
    )
    return replace(manifest, roles=roles, provenance=provenance)


def _timed(
    role: Role,
    graph: QuantizedGraph,
    directory: Path,
    manifest: Manifest,
    folder: Path,
    inputs: Inputs,
) -> QuantizedRole:
    """Measure both engines of a role in turn."""
    name, spec = manifest.roles[role].onnx, manifest.spec(role)
    with (
        OrtEngine(resolve_inside(directory, name), spec, threads=1) as before,
        OrtEngine(folder / name, spec, threads=1) as after,
    ):
        times_s: tuple[list[float], list[float]] = ([], [])
        for _ in range(_TIMED_RUNS):
            for engine, times in zip((before, after), times_s, strict=True):
                start_s = process_time()
                engine.run(inputs)
                times.append(process_time() - start_s)
    return QuantizedRole(role, graph, 1e3 * min(times_s[0]), 1e3 * min(times_s[1]))


def _write_parity(directory: Path, folder: Path, quantized: Iterable[Role]) -> None:
    """Copy the comparison with PyTorch of the roles whose graphs are the same."""
    path = directory / PARITY_NAME
    if path.exists():
        document = read_json(path, ManifestError)
        for role in quantized:
            document.get("roles", {}).pop(role, None)
        write_text_atomically(folder / PARITY_NAME, json.dumps(document, indent=2) + "\n")

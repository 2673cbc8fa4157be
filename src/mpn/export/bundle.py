"""Export of checkpoints to an engine directory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpn import __version__
from mpn._common.files import output_error, sha256_of_file, write_text_atomically
from mpn._common.locks import FolderLock
from mpn._common.records import json_from_record
from mpn.engines.directory.entries import FinetuneEntry, Preprocessing
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import Manifest, RoleEntry, save_manifest, verify_digests
from mpn.engines.directory.parity import PARITY_NAME
from mpn.engines.spec import ROLES, Role
from mpn.errors import CheckpointError, ExportError
from mpn.export.description import manifest_of, role_entry, spec_of
from mpn.export.finetune.parity import verify_step
from mpn.export.finetune.write import FINETUNABLE_ROLES, write_adapt
from mpn.export.graph import export_graph
from mpn.export.options import ExportOptions
from mpn.export.parity import CaseParity, parity_document, parity_text, verify_graph
from mpn.export.parity_inputs import ParityPictures
from mpn.export.progress import Progress, timed
from mpn.export.staging import FinishedRole, Staging, check_space, check_target
from mpn.export.summary import RoleSummary, parity_facts, role_summary
from mpn.networks.checkpoint import (
    Checkpoint,
    RoleWeights,
    build_network,
    load_checkpoint,
    merge_checkpoints,
)
from mpn.networks.fit import check_expected_variant

UNKNOWN_LICENCE = "unspecified"
_SPACE_MARGIN = 1.1
_BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class ExportedBundle:
    """Result of an export.

    Attributes:
        directory: The engine directory.
        manifest: Its manifest.
        roles: One per engine, in order of creation.
        elapsed_s: Seconds of the whole export.
    """

    directory: Path
    manifest: Manifest
    roles: tuple[RoleSummary, ...]
    elapsed_s: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line per fine-tuning step that was left out."""
        return tuple(summary.warning for summary in self.roles if summary.warning is not None)


def export_bundle(
    checkpoints: Sequence[Path],
    out: Path,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> ExportedBundle:
    """Export checkpoints to an engine directory, completely or not at all.

    Graphs are written and compared in a hidden folder next to ``out``, which is renamed at the end.
    An interrupted export continues if it is started again with the same checkpoints and options.

    Args:
        checkpoints: Own checkpoints or public files; together at least a propagation network, and
            each role once.
        out: The directory; created, or replaced if it is empty or an engine directory. Files that a
            user added to it are kept.
        options: Sizes, precision and verification.
        progress: Called for each step of each role.

    Returns:
        The exported directory with its summaries.

    Raises:
        CheckpointError: If a checkpoint cannot be used, or propagation is missing.
        ExportError: If a graph differs from its module or does not have the requested precision, or
            a required fine-tuning step cannot be written.
        InputError: If the parity images cannot be used.
        OutputError: If the directory cannot be written.
    """
    options = ExportOptions() if options is None else options
    progress = Progress() if progress is None else progress
    began_s = time.perf_counter()
    target = check_target(out)
    pictures = ParityPictures(options.parity_images) if options.verify else None
    checkpoint, licence = _loaded(checkpoints, options, progress)
    weights = _selected(checkpoint, options)
    check_space(target, _expected_bytes(weights, options))
    # Two exports would share the hidden folder.
    lock_file = target.with_name(f".{target.name}.mpn-export.lock")
    with FolderLock(target.parent, lock_file=lock_file, subject=target):
        staging = Staging.open(target, _key(checkpoint, options, pictures))
        entries: dict[Role, RoleEntry] = {}
        parities: dict[Role, Mapping[str, Any]] = {}
        summaries: list[RoleSummary] = []
        for role, role_weights in weights.items():
            found = staging.finished(role)
            if found is None:
                finished = _exported(role_weights, options, pictures, staging, progress)
            else:
                finished = found
                progress.reused(role)
            facts = finished.facts
            entries[role] = role_entry(role_weights, options, finished)
            if facts["parity"] is not None:
                parities[role] = facts["parity"]
            summaries.append(replace(RoleSummary(**facts["summary"]), reused=found is not None))
        manifest = manifest_of(target.name, entries, checkpoint, licence, options)
        document = parity_document(
            parities, inputs=None if pictures is None else pictures.description
        )
        write_text_atomically(staging.path / PARITY_NAME, parity_text(document))
        save_manifest(staging.path, manifest)
        verify_digests(staging.path, manifest, with_adapt=True)
        staging.publish()
        return ExportedBundle(target, manifest, tuple(summaries), time.perf_counter() - began_s)


def _loaded(
    paths: Sequence[Path], options: ExportOptions, progress: Progress
) -> tuple[Checkpoint, str]:
    """Load all checkpoints as one, and the licence of their weights."""
    if not paths:
        raise CheckpointError("no checkpoint was given: give at least one .pth file")
    for path in paths:  # check all first: reading one may take long
        if not path.exists():
            raise CheckpointError(f"there is no checkpoint at {path}: check the path")
    loaded = []
    for path in paths:
        progress.reading(path)
        item = load_checkpoint(path, init_fourth_channel=options.init_fourth_channel)
        if options.flow_variant is not None and "flow" in item.roles:
            check_expected_variant(item.roles, options.flow_variant, path)
        loaded.append(item)
    if options.flow_variant is not None and not any("flow" in item.roles for item in loaded):
        raise CheckpointError(
            f"{options.flow_variant} was requested, but no checkpoint holds a flow network: "
            "add its file, or leave out --flow-variant"
        )
    stated = (item.provenance.get("licence") for item in loaded)
    found = dict.fromkeys(text for text in stated if isinstance(text, str) and text)
    licence = options.licence or "; ".join(found) or UNKNOWN_LICENCE
    return merge_checkpoints(loaded), licence


def _selected(checkpoint: Checkpoint, options: ExportOptions) -> dict[Role, RoleWeights]:
    given = ", ".join(role for role in ROLES if role in checkpoint.roles)
    chosen = ROLES if options.roles is None else options.roles
    for role in options.roles or ():
        if role not in checkpoint.roles:
            raise CheckpointError(
                f"the role '{role}' was requested, but the checkpoints hold {given} only: "
                f"give a checkpoint with {role} weights too"
            )
    if "propagation" not in chosen:
        raise CheckpointError(
            f"an engine directory needs propagation, but only {', '.join(chosen)} was requested: "
            "add propagation to the roles"
        )
    if "propagation" not in checkpoint.roles:
        raise CheckpointError(
            f"an engine directory needs propagation, but only {given} was given: "
            "add a propagation checkpoint (of mpn train, or DeepLab v3+ Xception)"
        )
    return {
        role: checkpoint.roles[role]
        for role in ROLES
        if role in chosen and role in checkpoint.roles
    }


def _expected_bytes(weights: Mapping[Role, RoleWeights], options: ExportOptions) -> int:
    values = sum(tensor.numel() for role in weights.values() for tensor in role.state_dict.values())
    return int(values * _BYTES[options.precision] * _SPACE_MARGIN)


def _key(
    checkpoint: Checkpoint, options: ExportOptions, pictures: ParityPictures | None
) -> dict[str, Any]:
    """Collect everything that affects a graph and its parity, as JSON types."""
    return {
        "tool": __version__,
        "torch": str(torch.__version__),
        "checkpoints": checkpoint.sha256,
        "precision": options.precision,
        "frame_size_hw": options.frame_size_hw,
        "features_size_hw": options.features_size_hw,
        "roi_size": options.roi_size,
        "max_objects": options.max_objects,
        "init_fourth_channel": options.init_fourth_channel,
        "pictures": None if pictures is None else pictures.digest,
        "adapt": options.finetune,
        "adapt_optimizer": options.finetune_optimizer,
    }


def _exported(
    weights: RoleWeights,
    options: ExportOptions,
    pictures: ParityPictures | None,
    staging: Staging,
    progress: Progress,
) -> FinishedRole:
    """Export one role to the staging folder, compare it and record it."""
    role = weights.role
    path = staging.path / f"{role}.onnx"
    spec = spec_of(role, options, weights.config)
    adaptable = options.finetune is not False and role in FINETUNABLE_ROLES
    try:
        with timed(progress, role, "load"):
            network = build_network(weights)
        graph = export_graph(
            network,
            spec,
            path,
            precision=options.precision,
            weights_in_file=adaptable,
            progress=progress,
        )
        parity = None
        if pictures is not None:
            parity = verify_graph(
                path,
                spec,
                network,
                precision=options.precision,
                pictures=pictures,
                preprocessing=Preprocessing(),
                progress=progress,
            )
        adapt, left_out = None, None
        if adaptable:
            try:
                with timed(progress, role, "adapt"):
                    adapt, step_cases = _adapt(role, network, staging.path, options)
            except ExportError as error:
                if options.must_finetune:
                    raise ExportError(
                        f"{error}: leave out --finetune and --finetune-optimizer, and the engines "
                        "are written without this step"
                    ) from error
                left_out = str(error)
                staging.discard_step(role)
            else:
                if parity is not None:
                    parity = replace(parity, cases=(*parity.cases, *step_cases))
        names = [path.name, *graph.external_data]
        names += [] if adapt is None else [file.path for file in adapt.files]
        finished = FinishedRole(
            tuple(FileDigest(name, sha256_of_file(staging.path / name)) for name in names),
            {
                "summary": asdict(role_summary(weights, network, graph, parity, left_out)),
                "parity": None if parity is None else parity_facts(graph, parity, left_out),
                "adapt": None if adapt is None else json_from_record(adapt),
            },
        )
        staging.finish_role(role, finished)
    except BaseException as error:  # Ctrl-C included
        staging.discard_role(role)
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise
    return finished


def _adapt(
    role: Role, network: nn.Module, folder: Path, options: ExportOptions
) -> tuple[FinetuneEntry, tuple[CaseParity, ...]]:
    """Write the fine-tuning step of a role and, if requested, compare it."""
    written = write_adapt(
        role, network, folder, precision=options.precision, optimizer=options.finetune_optimizer
    )
    if not options.verify:
        return written.entry, ()
    cases = [verify_step(role, written, folder, scope) for scope in written.entry.graphs]
    return written.entry, tuple(cases)

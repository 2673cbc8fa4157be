"""Metadata of an export: specs, network names, manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpn import __version__
from mpn._common.records import record_from_json
from mpn.engines.directory.entries import (
    DIS_SOURCE,
    ENGINE_SOURCE,
    FinetuneEntry,
    FlowSource,
    Preprocessing,
    Provenance,
)
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import Manifest, RoleEntry, utc_now_iso
from mpn.engines.spec import (
    FEATURES_SIZE_STEP,
    FLOW_SIZE_MULTIPLE,
    OPSET,
    OSVOS_SIZE_MULTIPLE,
    ROI_SIZE_STEP,
    EngineSpec,
    Role,
    engine_spec,
    features_spec,
)
from mpn.errors import ManifestError
from mpn.export.options import ExportOptions
from mpn.export.staging import FinishedRole
from mpn.networks.checkpoint import Checkpoint, RoleWeights
from mpn.networks.features import FeaturesConfig, FeaturesNet

SIZE_MULTIPLES: Mapping[Role, int] = {
    "flow": FLOW_SIZE_MULTIPLE,
    "propagation": ROI_SIZE_STEP,
    "osvos": OSVOS_SIZE_MULTIPLE,
    "features": FEATURES_SIZE_STEP,
}


def spec_of(
    role: Role, options: ExportOptions, config: Mapping[str, Any] | None = None
) -> EngineSpec:
    """Return the interface of a role's engine at the sizes of the options.

    Args:
        role: Role of the engine.
        options: Options of the export.
        config: Config of the network; None for the defaults.
    """
    if role == "features":
        channels = FeaturesNet(FeaturesConfig(**(config or {}))).channels
        return features_spec(options.features_size_hw, channels)
    return engine_spec(
        role,
        frame_size_hw=options.frame_size_hw,
        roi_size=options.roi_size,
        max_objects=options.max_objects,
        propagation_channels=(config or {}).get("in_channels", 4),
    )


def variant_name(weights: RoleWeights) -> str:
    """Name the network for the manifest, for example ``"deeplab-xception-os16"``."""
    config = weights.config
    if weights.role == "flow":
        member = weights.variant.removeprefix("FlowNet2").lower()
        name = f"flownet2-{member}" if member else "flownet2"
    elif weights.role == "propagation":
        backbone, head = config.get("backbone", "xception"), config.get("head", "deeplab-v3+")
        # The name of directories before version 0.3.
        head = "deeplab" if (backbone, head) == ("xception", "deeplab-v3+") else head
        name = f"{head}-{backbone}-os{config.get('output_stride', 16)}"
    elif weights.role == "features":
        name = f"{config['backbone']}-os{config['output_stride']}"
    else:
        name = f"osvos-vgg-{config.get('branches', 5)}-branches"
    width = config.get("width", 1.0)
    return name if width == 1.0 else f"{name}-width-{width:g}"


def role_entry(weights: RoleWeights, options: ExportOptions, finished: FinishedRole) -> RoleEntry:
    """Build the manifest's entry of one engine.

    Args:
        weights: Weights of the network.
        options: Options of the export.
        finished: Its files, and the ``"summary"`` and ``"adapt"`` among its facts.
    """
    role = weights.role
    spec = spec_of(role, options, weights.config)
    facts = finished.facts
    adapt = (
        None
        if facts["adapt"] is None
        else record_from_json(facts["adapt"], FinetuneEntry, ManifestError)
    )
    of_adapt = set() if adapt is None else {file.path for file in adapt.files}
    graph, *external_data = (file for file in finished.files if file.path not in of_adapt)
    summary = facts["summary"]
    return RoleEntry(
        onnx=graph.path,
        sha256=graph.sha256,
        external_data=tuple(external_data),
        opset=OPSET,
        precision=options.precision,
        half_weights=summary["half_weights"],
        total_weights=summary["total_weights"],
        inputs=spec.inputs,
        outputs=spec.outputs,
        size_multiple=SIZE_MULTIPLES[role],
        variant=summary["variant"],
        parameters=summary["parameters"],
        adapt=adapt,
    )


def manifest_of(
    name: str,
    entries: Mapping[Role, RoleEntry],
    checkpoint: Checkpoint,
    licence: str,
    options: ExportOptions,
) -> Manifest:
    """Build the manifest of a directory.

    Args:
        name: Name of the directory, used if the options have none.
        entries: Its engines.
        checkpoint: Source of the weights.
        licence: Licence of the weights.
        options: Options of the export.
    """
    flow = (
        FlowSource(ENGINE_SOURCE)
        if "flow" in entries
        else FlowSource(DIS_SOURCE, options.flow_preset, options.flow_scale)
    )
    return Manifest(
        name=options.name or name,
        frame_size_hw=options.frame_size_hw,
        roi_size=options.roi_size,
        max_objects=options.max_objects,
        preprocessing=Preprocessing(),
        flow=flow,
        roles=entries,
        runtime_defaults=options.runtime_defaults,
        provenance=Provenance(
            checkpoints=tuple(
                FileDigest(source.path.name, source.sha256) for source in checkpoint.sources
            ),
            tool_version=__version__,
            command=options.command,
            licence=licence,
            created=utc_now_iso(),
        ),
    )

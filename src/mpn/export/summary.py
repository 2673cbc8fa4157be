"""Summaries of exported roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mpn.engines.spec import (
    Role,
)
from mpn.export.description import variant_name
from mpn.export.graph import ExportedGraph
from mpn.export.parity import RoleParity
from mpn.networks.checkpoint import RoleWeights


@dataclass(frozen=True)
class RoleSummary:
    """Row of the table at the end of an export.

    Attributes:
        role: Role of the engine.
        variant: Name of the network.
        parameters: Number of trained values.
        nodes: Nodes of the graph.
        size_bytes: Size of its files.
        half_weights: Number of weight tensors in half precision.
        total_weights: Number of weight tensors.
        export_s: Seconds of preparing, tracing and writing.
        verify_s: Seconds of the comparison; None if it was skipped.
        largest_difference: The measure nearest to its limit, as text; None if skipped.
        reused: Whether an earlier, interrupted run had finished it.
        warning: Text if its fine-tuning step was left out; otherwise None.
    """

    role: Role
    variant: str
    parameters: int
    nodes: int
    size_bytes: int
    half_weights: int
    total_weights: int
    export_s: float
    verify_s: float | None
    largest_difference: str | None
    reused: bool = False
    warning: str | None = None


def role_summary(
    weights: RoleWeights,
    network: nn.Module,
    graph: ExportedGraph,
    parity: RoleParity | None,
    left_out: str | None = None,
) -> RoleSummary:
    """Build the row of one role.

    Args:
        weights: Weights of the network.
        network: Network built from them.
        graph: The written graph.
        parity: Result of the comparison; None if it was skipped.
        left_out: Reason why the fine-tuning step was left out; otherwise None.
    """
    return RoleSummary(
        role=weights.role,
        variant=variant_name(weights),
        parameters=sum(value.numel() for value in network.parameters()),
        nodes=graph.nodes,
        size_bytes=graph.size_bytes,
        half_weights=graph.precision_report.half_weights,
        total_weights=graph.precision_report.total_weights,
        export_s=graph.elapsed_s,
        verify_s=None if parity is None else parity.elapsed_s,
        largest_difference=None if parity is None else parity.worst.text,
        warning=None
        if left_out is None
        else f"{weights.role} is exported without its fine-tuning step: {left_out}",
    )


def parity_facts(
    graph: ExportedGraph, parity: RoleParity, left_out: str | None = None
) -> dict[str, Any]:
    """Build one role's entry in ``parity.json``.

    Args:
        graph: The written graph.
        parity: Result of the comparison.
        left_out: Reason why the fine-tuning step was left out; otherwise None.
    """
    step = {} if left_out is None else {"finetuning_step_left_out": left_out}
    return (
        parity.as_json()
        | step
        | {
            "half_weights": graph.precision_report.half_weights,
            "total_weights": graph.precision_report.total_weights,
            "weights_lost_to_zero": graph.underflows,
        }
    )

"""What an export tells about one role when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mpn.engines.spec import Role
from mpn.export.description import variant_name
from mpn.export.graph import ExportedGraph
from mpn.export.parity import RoleParity
from mpn.networks.checkpoint import RoleWeights


@dataclass(frozen=True)
class RoleSummary:
    """One line of the table at the end of an export.

    Attributes:
        role: Which engine.
        variant: Which network.
        parameters: Number of trained values.
        nodes: Of the graph.
        size_bytes: Of its files.
        half_weights: Weight tensors that are half ...
        total_weights: ... of how many.
        export_s: Preparing, tracing and writing.
        verify_s: Comparing; None if it was skipped.
        largest_difference: The measure nearest to its limit, as text; None if it was skipped.
        reused: Whether an earlier, interrupted run had finished it.
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


def role_summary(
    weights: RoleWeights, network: nn.Module, graph: ExportedGraph, parity: RoleParity | None
) -> RoleSummary:
    """The line of one role.

    Args:
        weights: Of the network.
        network: Built from them.
        graph: What was written.
        parity: How it compared; None if that was skipped.
    """
    return RoleSummary(
        role=weights.role,
        variant=variant_name(weights),
        parameters=sum(value.numel() for value in network.parameters()),
        nodes=graph.nodes,
        size_bytes=graph.size_bytes,
        half_weights=graph.ledger.half_weights,
        total_weights=graph.ledger.total_weights,
        export_s=graph.elapsed_s,
        verify_s=None if parity is None else parity.elapsed_s,
        largest_difference=None if parity is None else parity.worst.text,
    )


def parity_facts(graph: ExportedGraph, parity: RoleParity) -> dict[str, Any]:
    """One role's entry in ``parity.json``."""
    return parity.as_json() | {
        "half_weights": graph.ledger.half_weights,
        "total_weights": graph.ledger.total_weights,
        "weights_lost_to_zero": graph.underflows,
    }

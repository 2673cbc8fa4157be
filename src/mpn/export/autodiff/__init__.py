"""Reverse-mode differentiation of ONNX graphs, as plain ONNX nodes."""

from mpn.export.autodiff.backward import Backward, differentiate
from mpn.export.autodiff.builder import GraphBuilder

__all__ = ["Backward", "GraphBuilder", "differentiate"]

"""Make wrong calls: mypy reports each of them if it reads the package's types."""

from mpn import Pipeline, PipelineOptions

PipelineOptions(size="large")
Pipeline.from_engines(backend="abacus")

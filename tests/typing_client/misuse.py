"""Wrong calls: mypy must report each of them, or it did not read the package's types."""

from mpn import Pipeline, PipelineOptions

PipelineOptions(size="large")
Pipeline.from_engines(backend="abacus")
